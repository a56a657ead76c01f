"""Votes of several prompts, from results/ensembles (`peft-bench ensemble`): a page of our own, and cells of table 3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ...config.metrics import metric
from ...config.schema import LOSS
from ...records.files import files_below
from ...records.places import ENSEMBLES
from ..page import Inputs, Page, by_scale
from ..render import bullets, markdown_table, page, points
from ..rules.selection import CELL_COLUMNS, mean_over_seeds_of_best_epoch

NAME = "prompt_ensembles"
_COSTS = ["one_pass_seconds", "one_by_one_seconds", "models_seconds", "prompt_bytes", "model_bytes"]


def pages(inputs: Inputs) -> Iterator[Page]:
    """A page a scale."""
    for scale, votes in by_scale(inputs.votes):
        title = f"Votes of several prompts, at {scale} scale"
        voters = frozenset((scale, experiment) for experiment in votes["experiment"])
        text = ensembles_page(votes, scale)
        yield Page(f"{scale}_{NAME}", title, text, votes, f"{len(votes)} scores", voters)


def read_ensembles(results: Path) -> pd.DataFrame:
    """One line per ensemble, split and metric: average, best and vote, and what the ensemble costs."""
    lines = []
    for path in sorted(path for path in files_below(results / ENSEMBLES) if path.suffix == ".json"):
        content = json.loads(path.read_text())
        shared = {name: content[name] for name in ("experiment", "scale", "settings", "task", "stands_for", *_COSTS)}
        shared |= {"run_ids": " ".join(content["run_ids"]), "voters": len(content["run_ids"])}
        shared |= {"device": content["numerics"]["device_name"] or content["numerics"]["device"]}
        shared |= {"threads": content["numerics"]["threads"], "changed_answers": content["changed_answers"]}
        lines += [shared | line for line in content["scores"] if line["metric"] != LOSS]
    return pd.DataFrame(lines)


def vote_cells(frame: pd.DataFrame, ensembles: pd.DataFrame) -> pd.DataFrame:
    """The votes as cells (selection.CELL_COLUMNS), with what is known of the runs that voted."""
    cells = []
    for ids, of_ensemble in ensembles.groupby("run_ids") if not ensembles.empty else ():
        votes = of_ensemble.set_index(["split", "metric"])["vote"]
        voters = frame[frame["run_id"].isin(str(ids).split())]
        for cell in mean_over_seeds_of_best_epoch(voters).to_dict("records"):
            key = (cell["split"], cell["metric"])
            if key in votes.index:
                cells.append(
                    cell | {"score": votes[key], "std": float("nan"), "low": float("nan"), "high": float("nan")}
                )
    return pd.DataFrame(cells, columns=CELL_COLUMNS)


def ensembles_page(table: pd.DataFrame, scale: str) -> str:
    """The page of one scale."""
    lines, costs = [], []
    for line in table.to_dict("records"):
        scores = [points(line[name], line["metric"]) for name in ("average", "best", "vote")]
        lines.append(
            [line["task"], line["split"], metric(line["metric"]).title, str(line["voters"]), *scores, str(line["n"])]
        )
    for line in table.drop_duplicates("run_ids").to_dict("records"):
        seconds = [f"{line[name]:.2f}" for name in _COSTS[:3]]
        costs.append(
            [
                line["task"],
                *seconds,
                *(f"{line[name]:,}" for name in _COSTS[3:]),
                f"{line['device']}, {line['threads']}",
            ]
        )
    above, best = (table["vote"] > table["average"]).sum(), (table["vote"] >= table["best"]).sum()
    cheaper = table.drop_duplicates("run_ids")
    smaller = (cheaper["prompt_bytes"] < cheaper["model_bytes"]).sum()
    faster = (cheaper["one_pass_seconds"] < cheaper["models_seconds"]).sum()
    notes = [
        f"T30, a vote beats the average and is at least the best: above the average in {above} of "
        f"{len(table)} lines, at least the best in {best}. One ensemble a line: no interval.",
        f"T31, prompts cost less than models: fewer bytes in {smaller} of {len(cheaper)}, one pass with all "
        f"prompts takes less time than as many models in {faster}. Answers of full length; a "
        "model is the backbone without a prompt.",
        "T32, a batch may mix tasks, is exact and a test (tests/benchmarks/studies/test_ensemble.py).",
        f"Answers that differ from the records', which were made in other packs: {cheaper['changed_answers'].sum()}.",
    ]
    return page(
        f"Votes of several prompts, at {scale} scale",
        "Lester et al. 2021, section 6: prompts of several seeds on one frozen backbone, their average, the best (of "
        "each metric its own) and their majority vote; of a tie, the answer of the lowest seed.",
        markdown_table(["task", "split", "metric", "prompts", "average", "best", "vote", "n"], lines, left=3),
        "## Cost",
        markdown_table(
            [
                "task",
                "one pass, s",
                "one by one, s",
                "as many models, s",
                "bytes of prompts",
                "bytes of models",
                "device, threads",
            ],
            costs,
        ),
        bullets(notes),
    )
