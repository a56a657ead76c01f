"""`peft-bench nearest`: the vocabulary entries nearest to each learned prompt token, and what Lester et al. 2021
(section 7) say of them, in numbers.

    results/nearest/runs.csv     one line per finished run of a prompt whose trained tensors are here
    results/nearest/tokens.csv   the five nearest entries of every token, of the first seed of each setting

Near is by cosine. A run's line, of P prompt tokens:

    label_rows, other_rows    share of the tokens that started from a label, and of the others, among whose five nearest
                              entries is a piece of a label (of its own; of any) (T33); empty without class labels
    cohesion, random_cohesion mean cosine between the five nearest entries, over all pairs; the same of as many random
                              vectors as there are tokens, times 20 (T34)
    unique                    different nearest entries, divided by P (T35)

V entries of the vocabulary, H width.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from ..records.files import write_files
from ..records.places import NEAREST, RECORDS, TRAINED
from ..records.schema import Record
from ..records.store import finished_records, record_path
from ..report.pages.nearest import SETTING, read_nearest

EXPERIMENT = "prompt_tuning/*"
NEIGHBORS = 5  # section 7
RANDOM = 20  # random vectors for each prompt token


def main(argv: Sequence[str]) -> int:
    """Measure, write. Raises ValueError where there is no prompt."""
    parser = argparse.ArgumentParser(
        prog="peft-bench nearest",
        description="The vocabulary entries nearest to each learned prompt token, and how they cluster. Needs the "
        "trained tensors (results/trained), which no clone has: it runs where the runs were made.",
    )
    parser.add_argument("--experiment", default=EXPERIMENT, help=f"whose finished runs, a pattern ({EXPERIMENT})")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds records/ (results)")
    parser.add_argument("--backbone-dir", help="local checkpoints, as backbone_dir= of peft-bench run")
    options = parser.parse_args(argv)
    if not options.experiment or Path(options.experiment).is_absolute():
        raise ValueError(f"--experiment {options.experiment!r}: expected a name or pattern such as {EXPERIMENT}")
    runs, tokens = [], []
    embeddings: dict[str, Any] = {}
    for record, rows in _prompts(options.results, options.experiment):
        name = f"{record['backbone']['name']} {record['backbone']['sha256']}"
        if name not in embeddings:
            embeddings = {name: _vocabulary(record, options.backbone_dir)}  # one at a time: they may be large
        tokenizer, vocabulary = embeddings[name]
        labels = _labels(record)
        line, near = measure(
            rows, vocabulary, [tokenizer(label, add_special_tokens=False).input_ids for label in labels]
        )
        about = {key: record[key] for key in ("run_id", "experiment", "scale", "task", "seed")}
        about |= {"stands_for": record["backbone"]["stands_for"] or record["backbone"]["name"]}
        about |= {"init": record["config"]["method"]["init"], "length": len(rows)}
        about |= {"target_prefix": record["config"]["task"].get("target_prefix") or ""}
        about |= {name: record["config"]["trainer"][name] for name in ("optimizer", "learning_rate")}
        runs.append(about | line)
        for i, (ids, cosines) in enumerate(zip(near.indices.tolist(), near.values.tolist(), strict=True)):
            pieces = tokenizer.convert_ids_to_tokens(ids)
            found = " ".join(f"{piece}:{cosine:.2f}" for piece, cosine in zip(pieces, cosines, strict=True))
            tokens.append(about | {"token": i, "start": labels[i] if i < len(labels) else "", "nearest": found})
    if not runs:
        raise ValueError(
            f"no finished prompt of {options.experiment} in {options.results / RECORDS} whose tensors are under "
            f"{options.results / TRAINED}: tensors stay where the runs were made, no clone has them. Run this there, "
            "or make runs first, as: peft-bench sweep prompt_tuning results_dir=outputs/prompts && "
            "peft-bench nearest --results outputs/prompts"
        )
    before = read_nearest(options.results)
    all_runs, all_tokens = (
        beside(measured, kept, options.results)
        for measured, kept in zip((pd.DataFrame(runs), pd.DataFrame(tokens)), before or (None, None), strict=True)
    )
    first = all_tokens.groupby(SETTING)["seed"].transform("min")
    for name, table in (("runs", all_runs), ("tokens", all_tokens[all_tokens["seed"] == first])):
        content = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
        write_files({options.results / NEAREST / f"{name}.csv": content.encode()})
    kept = f", {len(all_runs) - len(runs)} measured before" if len(all_runs) > len(runs) else ""
    print(f"{len(runs)} prompts{kept}: {options.results / NEAREST / 'runs.csv'}")
    return 0


def beside(measured: pd.DataFrame, before: pd.DataFrame | None, results: Path) -> pd.DataFrame:
    """With the lines of runs that were measured before, whose tensors may lie elsewhere; not without their record."""
    if before is None:
        return measured
    recorded = [
        record_path(results, *run).is_file() for run in zip(before["experiment"], before["run_id"], strict=True)
    ]
    kept = before[np.array(recorded, bool) & ~before["run_id"].isin(measured["run_id"])]
    order = ["experiment", "stands_for", "run_id"]
    return pd.concat([measured, kept], ignore_index=True).sort_values(order, kind="stable", ignore_index=True)


def measure(rows: Tensor, vocabulary: Tensor, labels: Sequence[Sequence[int]]) -> tuple[dict[str, Any], Any]:
    """One run's line (see above), and torch.topk's values and indices (P, 5) of the nearest entries.

    rows: (P, H). vocabulary: (V, H). labels: the pieces of each label, that of the first token first.
    """
    table = F.normalize(vocabulary.float(), dim=-1)
    near = _nearest(rows, table)
    pieces = {piece for label in labels for piece in label}
    started = min(len(labels), len(rows))
    kept = [
        bool({*labels[i]} & {*ids}) if i < started else bool(pieces & {*ids})
        for i, ids in enumerate(near.indices.tolist())
    ]
    noise = torch.randn(RANDOM * len(rows), rows.shape[1], generator=torch.Generator().manual_seed(0))
    line = {
        "label_rows": sum(kept[:started]) / started if started else None,
        "other_rows": sum(kept[started:]) / (len(rows) - started) if started and len(rows) > started else None,
        "cohesion": _cohesion(near.indices, table),
        "random_cohesion": _cohesion(_nearest(noise, table).indices, table),
        "unique": len({*near.indices[:, 0].tolist()}) / len(rows),
    }
    return line, near


def _nearest(rows: Tensor, table: Tensor) -> Any:
    return (F.normalize(rows.float(), dim=-1) @ table.T).topk(NEIGHBORS)


def _cohesion(ids: Tensor, table: Tensor) -> float:
    """Mean cosine of all pairs of one token's nearest entries (P, 5), over the tokens."""
    own = table[ids]
    cosines = own @ own.transpose(1, 2)
    pairs = NEIGHBORS * (NEIGHBORS - 1)
    return float(((cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / pairs).mean())


def _labels(record: Record) -> list[str]:
    """What the first tokens started from; empty where the prompt had another start."""
    from ..runs.attach import with_labels
    from ..runs.reopen import recorded_config

    cfg = recorded_config(record, {})
    return list(with_labels(cfg)["labels"]) if cfg.method["init"] == "class_labels" else []


def _prompts(results: Path, experiment: str) -> Iterator[tuple[Record, Tensor]]:
    """The finished runs of a prompt that are here with their tensors, by backbone."""
    from peft_methods.state import read_safetensors

    found: list[tuple[str, Record, Path]] = []
    for record in finished_records(results, experiment):
        trained = results / TRAINED / record["experiment"] / f"{record['run_id']}.safetensors"
        if "init" in record["config"]["method"] and trained.exists():
            found.append((record["backbone"]["name"], record, trained))
    for _, record, trained in sorted(found, key=lambda one: one[0]):
        tensors, _ = read_safetensors(trained)
        rows = [tensor for name, tensor in tensors.items() if name.endswith(".rows")]
        if len(rows) == 1:
            yield record, rows[0]


def _vocabulary(record: Record, backbone_dir: str | None) -> tuple[Any, Tensor]:
    """Tokenizer and input embeddings (V, H) of a run's backbone."""
    from ..backbones.loading import load_backbone
    from ..runs.reopen import recorded_config

    cfg = recorded_config(record, {"backbone_dir": backbone_dir})
    backbone = load_backbone(cfg.backbone, cfg.scale, cfg.backbone_dir, torch.device("cpu"), cfg.seed)
    return backbone.tokenizer, backbone.model.get_input_embeddings().weight.detach()
