"""A control has no backbone: it is fitted, scored and recorded without a walk through attach and train."""

import dataclasses
import time

from ..answers.predictions import Labels, Words
from ..backbones.origin import Origin
from ..config.compose import build_method
from ..config.kinds import writes_text
from ..records.store import write_record
from .outcome import Outcome
from .prepare import Prepared
from .record import assemble, done
from .score import Scored, judge


def make_control(p: Prepared) -> Outcome:
    """A control without a backbone: fitted on the training texts, scored like every run."""
    task, data = p.cfg.task, p.data.own
    start = time.perf_counter()
    regression = task.num_labels == 1
    fitted = build_method(p.cfg.method).fit(data.texts[task.train_split], data.labels[task.train_split], regression)
    seconds = time.perf_counter() - start
    kind = Words if writes_text(p.cfg.backbone.model_type) else Labels  # the metrics of the runs it stands beside
    asked, predictions = {}, {}
    for name, examples in {"": data, **p.data.transfer}.items():
        for split, rows in examples.texts.items():
            if name or split != task.train_split:
                called = f"{name}/{split}" if name else split
                asked[called] = (p.cfg.transfer[name] if name else task, examples.gold(split))
                predictions[called] = kind(fitted.predict(rows))
    scores, flags, columns = judge(p.cfg, {"last": predictions, "best": predictions}, asked)
    scored = Scored(scores, flags, columns, {"last": None, "best": None}, cost={"train_seconds": seconds})
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
    backbone = {"name": "none", "stands_for": p.cfg.backbone.name, "sha256": None}
    backbone |= dataclasses.asdict(Origin(False))
    written = assemble(p, backbone, numerics, scored)
    write_record(p.cfg.results_dir, written, scored.columns)
    return done(p, written)
