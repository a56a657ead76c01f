"""`peft-bench ensemble`: several prompts on one frozen backbone answer together, by majority vote (Lester et al. 2021,
section 6), and what that costs beside several models.

Finished runs that differ in nothing but the seed are attached as one pack: one pass answers every example with all
prompts. The answer of most prompts counts; of a tie, the one that comes first in the order of the seeds (the paper does
not say). An answer that is no label is no vote.

    results/ensembles/<experiment>/<sha256 of the run ids>.json    what `peft-bench report` reads
"""

import argparse
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.utils import send_to_device

from peft_methods.attached import Attached
from peft_methods.inputs import Batch

from ..answers.decoding import read, write
from ..answers.job import Job
from ..answers.texts import INPUTS
from ..answers.tokens import TokenizedSplit
from ..answers.words import ILLEGAL
from ..config.schema import LOSS, RunConfig, task_of
from ..records.files import write_files
from ..records.places import ENSEMBLES, RECORDS
from ..records.schema import Record
from ..records.store import finished_records, read_predictions
from ..tasks.examples import TaskData
from ..training.evaluation import scores, text_scores

EXPERIMENT = "prompt_tuning/table3"


def vote(answers: Sequence[Sequence[Hashable]], no_vote: Hashable = None) -> list[Hashable]:
    """One answer per example from those of each voter, in the voters' order; `no_vote` where nobody has one."""
    voted = []
    for of_example in zip(*answers, strict=True):
        counted = Counter(answer for answer in of_example if answer != no_vote).most_common(1)  # ties: the first seen
        voted.append(counted[0][0] if counted else no_vote)
    return voted


def main(argv: Sequence[str]) -> int:
    """Vote, measure, write. Raises ValueError where there is nothing to vote with."""
    parser = argparse.ArgumentParser(
        prog="peft-bench ensemble",
        description="Majority vote of the seeds of a setting, all prompts in one pass, and its cost beside as many "
        "models. Needs the trained tensors (results/trained), which no clone has: it runs where the runs were made.",
    )
    parser.add_argument("--experiment", default=EXPERIMENT, help=f"whose finished runs vote ({EXPERIMENT})")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds records/ (results)")
    parser.add_argument("--data-dir", help="local data in hub layout, as data_dir= of peft-bench run")
    parser.add_argument("--backbone-dir", help="local checkpoints, as backbone_dir= of peft-bench run")
    parser.add_argument("--voters", type=int, default=5, help="prompts of an ensemble, the lowest seeds (5)")
    parser.add_argument("--repeats", type=int, default=5, help="of the timed passes, whose median counts (5)")
    options = parser.parse_args(argv)
    if options.voters < 2 or options.repeats < 1:
        raise ValueError(
            f"--voters {options.voters} --repeats {options.repeats}: expected at least 2 prompts, and 1 timed pass"
        )
    made = 0
    for group in _groups(options.results, options.experiment):
        name = f"{group[0]['experiment']} {group[0]['task']} at scale {group[0]['scale']}"
        if len(group) < options.voters:
            print(f"left out: {name} has {len(group)} of {options.voters} voters")
            continue
        found = ensemble(group[: options.voters], options)
        made += 1
        for line in found["scores"]:
            if line["metric"] != LOSS:
                print(
                    f"{name}, {line['split']} {line['metric']}: average {100 * line['average']:.1f}, best "
                    f"{100 * line['best']:.1f}, vote {100 * line['vote']:.1f} (n = {line['n']})"
                )
    if not made:
        raise ValueError(
            f"no setting of {options.experiment} in {options.results / RECORDS} has {options.voters} finished seeds; "
            f"make them: {_commands(options)}"
        )
    return 0


def ensemble(group: Sequence[Record], options: argparse.Namespace) -> dict[str, Any]:
    """Attach the runs as one pack, vote on every split, time it; the file's content."""
    from ..runs.reopen import reopened

    places = {"data_dir": options.data_dir, "backbone_dir": options.backbone_dir, "results_dir": str(options.results)}
    otherwise = f", no clone has them. Make voters of your own: {_commands(options)}"
    with reopened(group, places, otherwise) as (pack, machine):
        attached, jobs, first = pack.attached, pack.jobs, pack.runs[0].cfg
        splits = [s for s in jobs[0].data if s != first.task.train_split and not s.endswith(INPUTS)]
        lines: list[dict[str, Any]] = []
        changed = 0
        for split in splits:
            answers = _answers(attached, jobs, split)
            for own, record in zip(answers, group, strict=True):
                recorded = read_predictions(options.results, record["experiment"], record["run_id"])
                changed += sum(a != b for a, b in zip(own, recorded[split]["prediction"], strict=True))
            lines += _scored(first, pack.runs[0].data, split, answers)
        stored = sum(p.numel() * p.element_size() for k in range(len(jobs)) for p in attached.run(k).stored().values())
        model = sum(p.numel() * p.element_size() for p in pack.backbone.model.parameters())
        times = _times(attached, jobs, splits[0], options.repeats)
        numerics = machine.numerics(first, pack.run_ids)
    found = {
        **{key: group[0][key] for key in ("experiment", "scale", "settings", "task")},
        "stands_for": group[0]["backbone"]["stands_for"],
        "seeds": [record["seed"] for record in group],
        "run_ids": [record["run_id"] for record in group],
        "changed_answers": changed,  # beside the records', which were made in other packs
        "scores": lines,
        **times,
        "prompt_bytes": stored,
        "model_bytes": model * len(group),
        "numerics": {key: numerics[key] for key in ("device", "device_name", "dtype", "threads")},
    }
    name = hashlib.sha256(" ".join(found["run_ids"]).encode()).hexdigest()[:16]
    path = options.results / ENSEMBLES / found["experiment"] / f"{name}.json"
    write_files({path: (json.dumps(found, indent=1) + "\n").encode()})
    return found


def _commands(options: argparse.Namespace) -> str:
    return (
        f"peft-bench run -m experiment={options.experiment} 'seed=range({options.voters})' results_dir=outputs/votes "
        f"&& peft-bench ensemble --experiment {options.experiment} --voters {options.voters} --results outputs/votes"
    )


def _groups(results: Path, experiment: str) -> Iterator[list[Record]]:
    """The finished runs of an experiment that differ in the seed alone, by seed."""
    groups: dict[str, list[Record]] = {}
    for record in finished_records(results, experiment):
        key = json.dumps({k: v for k, v in record["config"].items() if k != "seed"}, sort_keys=True)
        groups.setdefault(key, []).append(record)
    for group in groups.values():
        yield sorted(group, key=lambda record: record["seed"])


def _answers(attached: Attached, jobs: Sequence[Job], split: str) -> list[list[Any]]:
    """What every run answers to every example (or input) of the split: one pass for all."""
    answers: list[list[Any]] = [[None] * len(_asked(jobs[0], split).lengths) for _ in jobs]
    for rows, batch in _batches(attached, jobs[0], split):
        for k, of_run in enumerate(_written(attached, jobs, split, [batch] * len(jobs))):
            for row, answer in zip(rows, of_run, strict=True):
                answers[k][row] = answer
    return answers


def _asked(job: Job, split: str) -> TokenizedSplit:
    """What is asked: the rows of a split, or the different inputs where answers are texts."""
    return job.data[split + INPUTS if job.texts is not None else split]


def _batches(attached: Attached, job: Job, split: str) -> Iterator[tuple[list[int], Batch]]:
    """(rows, their batch), longest first."""
    asked = _asked(job, split)
    order = np.argsort(asked.lengths, kind="stable")[::-1]
    size = job.cfg.decoding.batch_size if job.texts is not None else job.cfg.trainer.eval_batch_size
    device = next(attached.backbone.parameters()).device
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows.tolist(), send_to_device(job.question_batch(asked, rows), device)


def _written(attached: Attached, jobs: Sequence[Job], split: str, batches: list[Batch | None]) -> list[list[Any]]:
    """Each run's answers to its batch."""
    job = jobs[0]
    if job.texts is not None:
        cfg, texts = job.cfg.decoding, job.texts
        found = write(attached, batches, cfg, texts.tokenizer)
        return [
            [texts.read(read(row, cfg, texts.tokenizer)[0]) for row in ids.tolist()] for ids in found if ids is not None
        ]
    writer = job.transfers.get(split.rpartition("/")[0], job.writer)
    if writer is None:
        raise ValueError(f"{job.cfg.experiment} classifies through a head: votes are of backbones that write")
    found = attached.generate(batches, max_new_tokens=writer.max_new_tokens, do_sample=False, num_beams=1)
    return [writer.read(ids).tolist() for ids in found if ids is not None]


def _scored(cfg: RunConfig, data: TaskData, split: str, answers: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Average and best of the voters, and the vote, by every metric of the split's task."""
    task = task_of(cfg, split)

    def by_metric(found: Sequence[Any]) -> Mapping[str, Any]:
        if split in data.references:
            return text_scores(task, found, data.references[split], data.groups.get(split))
        return scores(task, np.array(found), data.labels[split], data.groups.get(split))

    own = [by_metric(found) for found in answers]
    voted = by_metric(vote(answers, "" if split in data.references else ILLEGAL))
    return [
        {
            "split": split,
            "metric": metric,
            "average": statistics.fmean(found[metric] for found in own),
            "best": max(found[metric] for found in own),
            "vote": voted[metric],
            "n": len(answers[0]),
        }
        for metric in voted
    ]


def _times(attached: Attached, jobs: Sequence[Job], split: str, repeats: int) -> dict[str, float]:
    """Median seconds to answer the split: all prompts in one pass, one prompt after the other, and the backbone without
    a prompt as often as there are prompts, which is what as many tuned models take. Every answer is as long as may be.
    Detaches the runs."""
    job = jobs[0]
    length = job.cfg.decoding.max_new_tokens if job.writer is None else job.writer.max_new_tokens
    settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "num_beams": 1}
    batches = [batch for _, batch in _batches(attached, job, split)]

    def together() -> None:
        for batch in batches:
            attached.generate([batch] * len(jobs), **settings)

    def one_by_one() -> None:
        for k in range(len(jobs)):
            for batch in batches:
                attached.generate([batch if i == k else None for i in range(len(jobs))], **settings)

    def models() -> None:
        for _ in jobs:
            for batch in batches:
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                cast(Any, attached.backbone).generate(**inputs, pad_token_id=job.pad_token_id, **settings)

    times = _medians({"one_pass": together, "one_by_one": one_by_one}, repeats)
    attached.detach()
    attached.backbone.eval()
    return times | _medians({"models": models}, repeats)


def _medians(timed: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """<name>_seconds; in turn, so that a slow minute of the machine hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, passes in timed.items():
            start = time.perf_counter()
            passes()
            seconds[name].append(time.perf_counter() - start)
    return {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
