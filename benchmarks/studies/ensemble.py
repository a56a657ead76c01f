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

from ..answers.job import Job
from ..answers.texts import TextAnswers
from ..answers.tokens import Split
from ..answers.words import WordAnswers
from ..config.metrics import metric as metric_of
from ..config.schema import LOSS
from ..records.files import write_files
from ..records.places import ENSEMBLES, RECORDS
from ..records.schema import Record
from ..records.store import finished_records, read_predictions

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
        asked = {name: (_writing(jobs[0], name), scored.split) for name, scored in jobs[0].scored.items()}
        lines: list[dict[str, Any]] = []
        changed = 0
        for name, (writing, split) in asked.items():
            answers = _answers(attached, writing, split)
            for of_run, record in zip(answers, group, strict=True):
                recorded = read_predictions(options.results, record["experiment"], record["run_id"])
                changed += sum(bool(a != b) for a, b in zip(of_run, recorded[name]["prediction"], strict=True))
            lines += _scored(name, writing, split, answers)
        stored = sum(p.numel() * p.element_size() for k in range(len(jobs)) for p in attached.run(k).stored().values())
        model = sum(p.numel() * p.element_size() for p in pack.backbone.model.parameters())
        times = _times(attached, *next(iter(asked.values())), options.repeats)
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


def _writing(job: Job, name: str) -> WordAnswers | TextAnswers:
    """How the runs answer a split. Raises ValueError where they do not write."""
    answers = job.scored[name].answers
    if not isinstance(answers, WordAnswers | TextAnswers):
        raise ValueError(f"{job.cfg.experiment} classifies through a head: votes are of backbones that write")
    return answers


def _answers(attached: Attached, writing: WordAnswers | TextAnswers, split: Split) -> list[list[Any]]:
    """What every run answers to every question of the split: one pass for all."""
    answers: list[list[Any]] = [[None] * len(split.questions) for _ in attached.runs]
    for rows, batch in _batches(attached, writing, split):
        written = writing.write(attached, [batch] * len(answers))
        for of_run, ids in zip(answers, written, strict=True):
            assert ids is not None
            for row, answer in zip(rows, np.array(writing.read(ids), object).tolist(), strict=True):
                of_run[row] = answer
    return answers


def _batches(
    attached: Attached, writing: WordAnswers | TextAnswers, split: Split
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(rows, their batch), longest first."""
    order = np.argsort(split.questions.lengths, kind="stable")[::-1]
    device = next(attached.backbone.parameters()).device
    for start in range(0, len(order), writing.batch_size):
        rows = order[start : start + writing.batch_size]
        yield rows.tolist(), send_to_device(writing.question_batch(split.questions, rows), device)


def _scored(
    name: str, writing: WordAnswers | TextAnswers, split: Split, answers: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Average and best of the voters, and the vote, by every metric of the split's task."""

    def by_metric(found: Sequence[Any]) -> Mapping[str, Any]:
        return writing.metrics(found, split.gold)

    own = [by_metric(found) for found in answers]
    voted = by_metric(vote(answers, writing.no_answer))
    return [
        {
            "split": name,
            "metric": metric,
            "average": statistics.fmean(found[metric] for found in own),
            "best": metric_of(metric).best(found[metric] for found in own),
            "vote": voted[metric],
            "n": len(answers[0]),
        }
        for metric in voted
    ]


def _times(attached: Attached, writing: WordAnswers | TextAnswers, split: Split, repeats: int) -> dict[str, float]:
    """Median seconds to answer the split: all prompts in one pass, one prompt after the other, and the backbone without
    a prompt as often as there are prompts, which is what as many tuned models take. Every answer is as long as may be.
    Detaches the runs."""
    length, voters = writing.max_new_tokens, len(attached.runs)
    arguments = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "num_beams": 1}
    batches = [batch for _, batch in _batches(attached, writing, split)]

    def together() -> None:
        for batch in batches:
            attached.generate([batch] * voters, **arguments)

    def one_by_one() -> None:
        for k in range(voters):
            for batch in batches:
                attached.generate([batch if i == k else None for i in range(voters)], **arguments)

    def models() -> None:
        for _ in range(voters):
            for batch in batches:
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                cast(Any, attached.backbone).generate(**inputs, pad_token_id=writing.pad, **arguments)

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
