"""A record that no run made: for the tests, and for timing the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .schema import SCHEMA, Record, check, tolerance_for

TASKS: dict[str, list[str]] = {
    "cola": ["matthews_correlation"],
    "sst2": ["accuracy"],
    "mrpc": ["accuracy", "f1"],
    "stsb": ["pearson", "spearman"],
    "qqp": ["accuracy", "f1"],
    "mnli": ["accuracy"],
    "qnli": ["accuracy"],
    "rte": ["accuracy"],
}


def made_record(
    experiment: str,
    task: str,
    seed: int,
    score: float | None,
    *,
    scale: str = "micro",
    settings: str = "paper",
    validation: float | None = None,
    method: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    failed: str | None = None,
    flags: tuple[str, ...] = (),
    backbone: str = "micro_bert",
    published: bool = False,
    source: str = "micro-2",
    rows: Mapping[str, int] | None = None,
    epochs: int = 20,
    **changed: Any,
) -> Record:
    """A whole record: `score` on every test split and metric, `validation`
    (default: the same) on every validation split. `failed`: the kind of its cause. `changed`: top-level keys."""
    validation = score if validation is None else validation
    suffixes = ("_matched", "_mismatched") if task == "mnli" else ("",)
    values = {
        f"{split}{suffix}": (validation, score)[split == "test"]
        for split in ("validation", "test")
        for suffix in suffixes
    }
    sizes = dict(rows or {"train": 2000} | dict.fromkeys(values, 2000))
    scored = {split: value for split, value in values.items() if split in sizes}
    method = {"_target_": "peft_methods.bottleneck.Houlsby", "bottleneck_dim": 16, "init_std": 0.01} | dict(
        method or {}
    )
    trainer = {"learning_rate": 1e-3, "batch_size": 32, "epochs": epochs, "warmup_ratio": 0.1} | dict(trainer or {})
    named = repr(
        (experiment, task, seed, scale, settings, sorted(method.items()), sorted(trainer.items()), sorted(changed))
    )
    history = [
        {
            "epoch": float(epoch),
            "step": 63 * epoch,
            "train_loss": 0.69 / epoch,
            "learning_rate": 1e-3 / epoch,
            "scores": {split: dict.fromkeys(TASKS[task], value) for split, value in scored.items() if "val" in split},
        }
        for epoch in range(1, epochs + 1)
    ]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": hashlib.sha256(named.encode()).hexdigest()[:16],
        "experiment": experiment,
        "scale": scale,
        "settings": settings,
        "task": task,
        "seed": seed,
        "status": "failed" if failed else "done",
        "cause": {"kind": failed, "message": f"the run {failed}"} if failed else None,
        "identity": {"data": "0" * 64, "versions": {"loop": 1, "method": 1, "task": 1}, "parents": []},
        "parents": [],
        "departures": {},
        "config": {
            **{"experiment": experiment, "settings": settings, "seed": seed},
            **{"method": method, "trainer": trainer, "task": {"name": task}},
            "scale": {"name": scale, "data": scale},
            "backbone": {"name": backbone, "model_type": "bert"},
        },
        "backbone": {
            "name": backbone,
            "stands_for": "bert_large_uncased",
            "published": published,
            "pinned": published,
            "sha256": hashlib.sha256(backbone.encode()).hexdigest(),
        },
        "data": {"source": source, "sha256": hashlib.sha256(f"{source} {task}".encode()).hexdigest(), "rows": sizes},
        "selection": {
            "checkpoint": "best",
            "split": "validation_matched" if task == "mnli" else "validation",
            "metric": TASKS[task][0],
        },
        "scores": [
            {"split": split, "checkpoint": at, "epoch": 2.0, "metric": metric, "score": value, "n": sizes[split]}
            for split, value in scored.items()
            for at in ("best", "last")
            for metric in TASKS[task]
            if not failed
        ],
        "history": history,
        "params": {"method": 8448, "head": 130, "added": 8192, "stored": 8578, "backbone": 250000, "layers": 100000},
        "trained_sha256": None,
        "flags": list(flags),
        "numerics": {
            "device": "cpu",
            "device_name": "x86_64",
            "dtype": "float32",
            "threads": 1,
            "pack": 1,
            "members": None,
            "micro_batch_size": None,
            "processes": 1,
            "versions": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6", "python": "3.11.2"},
        },
        "tolerance": tolerance_for("float32"),
        "cost": {
            "train_seconds": 3.1,
            "eval_seconds": 0.5,
            "train_tokens": 12345,
            "tokens_per_second": 4000.0,
            "peak_memory_bytes": 123456789,
        },
        "provenance": {"git_commit": "0" * 40, "git_dirty": False, "created": "2026-01-01T00:00:00+00:00"},
    }
    record |= changed
    check(record)
    return record  # type: ignore[return-value]
