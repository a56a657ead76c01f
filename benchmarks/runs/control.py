"""A control has no backbone: it is fitted, scored and recorded without a walk through attach and train."""

import time

from ..config.compose import build_method
from ..records.store import write_record
from .outcome import Outcome
from .prepare import Prepared
from .record import assemble, done
from .score import Scored, prediction_columns


def make_control(p: Prepared) -> Outcome:
    """A control without a backbone: fitted on the training texts, scored like every run."""
    task, data = p.cfg.task, p.data
    start = time.perf_counter()
    regression = task.num_labels == 1
    fitted = build_method(p.cfg.method).fit(data.texts[task.train_split], data.labels[task.train_split], regression)
    seconds = time.perf_counter() - start
    predictions = {s: fitted.predict(rows) for s, rows in data.texts.items() if s != task.train_split}
    scored = Scored(
        {"last": predictions, "best": predictions}, {"last": None, "best": None}, cost={"train_seconds": seconds}
    )
    numerics = {
        "device": "cpu",
        "device_name": "",
        "dtype": "float64",
        "threads": 1,
        "pack": 1,
        "members": [p.run_id],
        "micro_batch_size": None,
        "processes": 1,
        "versions": {},
    }
    backbone = {"name": "none", "stands_for": p.cfg.backbone.name, "published": False, "sha256": None}
    written = assemble(p, backbone, numerics, scored)
    write_record(p.cfg.results_dir, written, prediction_columns(p.cfg, scored, p.data))
    return done(p, written)
