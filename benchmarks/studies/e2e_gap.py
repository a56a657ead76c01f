"""`peft-bench errata e2e_gap`: what stands between a score on E2E and the paper's, factor by factor.

Three users of the released LoRA code report 68.65 to 68.87 BLEU for GPT-2 medium where Table 3 prints 70.4
(microsoft/LoRA#165). Trained runs are decoded again in every combination of what the papers, their code and
transformers do differently, and every set of outputs is scored in every way. What differs between the runs themselves
(label smoothing, text form of the training data, checkpoint: experiment=errata/e2e_gap sweeps them) is a factor, too.

    results/errata/e2e_gap/<run_id>.<decoding>.json.gz    outputs of one run under one decoding: kept, never made twice
    results/errata/e2e_gap.csv                            every combination and its BLEU; `peft-bench report` reads it
"""

import argparse
import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from sacrebleu.metrics.bleu import BLEU

from ..config.schema import DecodingConfig, RunConfig
from ..metrics.e2e import bleu
from ..records.files import write_files
from ..records.places import ERRATA, RECORDS
from ..records.schema import Record
from ..records.store import finished_records

EXPERIMENT = "errata/e2e_gap"
# Factor -> levels, the papers' or their code's; both of an n-gram's two settings go together.
DECODING: dict[str, list[Any]] = {
    "beams": [5, 10],
    "length_penalty": [0.8, 0.9, 1.0],
    "length_counts": ["output", "source_and_output"],
    "no_repeat_ngram": [0, 4],
    "ends": [[], ["\n\n"]],
}
TRAINING = {  # factor -> where the record's configuration has it
    "label_smoothing": ("trainer", "label_smoothing"),
    "checkpoint": ("trainer", "selection"),
    "training text": ("task", "generation", "text_form"),
}


def main(argv: Sequence[str]) -> int:
    """Decode, score, write the table. Raises ValueError where there is no run to decode."""
    parser = argparse.ArgumentParser(
        prog="peft-bench errata", description=__doc__.split("\n\n")[1], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=["e2e_gap"])
    parser.add_argument("--experiment", default=EXPERIMENT, help=f"whose finished runs are decoded ({EXPERIMENT})")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds records/ (results)")
    parser.add_argument("--data-dir", help="E2E in hub layout, as data_dir= of peft-bench run")
    parser.add_argument("--backbone-dir", help="local checkpoints, as backbone_dir= of peft-bench run")
    parser.add_argument(
        "--levels", action="append", default=[], metavar="FACTOR=JSON",
        help="other levels of a decoding factor, such as beams=[5] (may be given several times)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    levels = DECODING | _given(options.levels)
    records = list(finished_records(options.results, options.experiment))
    if not records:
        raise ValueError(
            f"no finished run of {options.experiment} in {options.results / RECORDS}; make some with: peft-bench run "
            f"-m experiment={options.experiment} scale=paper"
        )
    lines: list[dict[str, Any]] = []
    for record in records:
        lines += _of_run(record, levels, options)
    table = pd.DataFrame(lines)
    content = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    path = options.results / ERRATA / "e2e_gap.csv"
    write_files({path: content.encode()})
    from ..report.pages.e2e_gap import effects, effects_markdown

    print(effects_markdown(effects(table)))
    print(f"\n{len(table)} combinations: {path}")
    return 0


def _given(words: Sequence[str]) -> dict[str, list[Any]]:
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            levels = json.loads(value)
        except json.JSONDecodeError:
            levels = None
        if name not in DECODING or not isinstance(levels, list) or not levels:
            raise ValueError(f"--levels {word}: expected one of {', '.join(DECODING)} and a JSON list, as in beams=[5]")
        found[name] = levels
    return found


def _of_run(record: Record, levels: Mapping[str, list[Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every combination of decoding and scoring for one run."""
    from ..answers.decoding import clean_up
    from ..runs.reopen import recorded_config

    places = {"data_dir": options.data_dir, "backbone_dir": options.backbone_dir, "results_dir": str(options.results)}
    cfg = recorded_config(record, places)
    references = _references(cfg)
    shared = {"run_id": record["run_id"], "seed": record["seed"]}
    for factor, path in TRAINING.items():
        value: Any = record["config"]
        for key in path:
            value = value[key]
        shared[factor] = value
    decodings = [
        dataclasses.replace(
            cfg.decoding, clean_up=False, ngram_counts="output", **dict(zip(levels, chosen, strict=True))
        )
        for chosen in itertools.product(*levels.values())
    ]
    lines = []
    for decoding, texts in _outputs(record, places, decodings):
        named = {name: _named(getattr(decoding, name)) for name in levels}
        for clean, form, metric in itertools.product((False, True), references, METRICS):
            made = [clean_up(text) for text in texts] if clean else texts
            score = METRICS[metric](made, references[form])
            lines.append(shared | named | {"clean_up": clean, "references": form, "metric": metric, "bleu": score})
    return lines


def _named(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _cased(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """sacrebleu as it comes: case counts."""
    longest = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(longest)]
    return float(BLEU(tokenize="13a", force=True).corpus_score([*predictions], streams).score) / 100  # type: ignore[arg-type]


METRICS = {"official script": bleu, "sacrebleu, cased": _cased}


def _references(cfg: RunConfig) -> dict[str, list[list[str]]]:
    """The test references in both forms, in the order of the run's inputs."""
    from ..config.compose import compose_run
    from ..tasks.loading import load_task

    own = load_task(cfg.task, cfg.scale, cfg.data_dir)
    words = ["task=e2e", f"scale={cfg.scale.name}", "task.generation.reference_form=official"]
    official = compose_run([*words, *([f"data_dir={cfg.data_dir}"] if cfg.data_dir else [])])
    found = load_task(official.task, official.scale, cfg.data_dir)
    by_line = dict(zip(found.inputs["test"], found.references["test"], strict=True))
    if missing := [line for line in own.inputs["test"] if line not in by_line]:
        raise ValueError(f"the official E2E test set has no input {missing[0]!r}; expected both forms of the same data")
    return {"tokenized": own.references["test"], "official": [by_line[line] for line in own.inputs["test"]]}


def _outputs(
    record: Record, places: Mapping[str, Any], decodings: Sequence[DecodingConfig]
) -> Iterator[tuple[DecodingConfig, list[str]]]:
    """What the run writes under each decoding: kept from before, or decoded now."""
    from ..runs.reopen import reopened

    with contextlib.ExitStack() as stack:
        pack = None
        for i, decoding in enumerate(decodings):
            settings = json.dumps(dataclasses.asdict(decoding) | {"name": "", "batch_size": 0}, sort_keys=True)
            name = f"{record['run_id']}.{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json.gz"
            path = Path(places["results_dir"]) / ERRATA / "e2e_gap" / name
            if not path.exists():
                pack = pack or stack.enter_context(reopened([record], places, "; make it again there"))
                title = f"{record['run_id']}: decoding {i + 1} of {len(decodings)}"
                texts = _decode(*pack, decoding, title)
                content = json.dumps({"decoding": json.loads(settings), "prediction": texts})
                write_files({path: gzip.compress(content.encode(), mtime=0)})
            yield decoding, json.loads(gzip.decompress(path.read_bytes()))["prediction"]


def _decode(pack: Any, machine: Any, decoding: DecodingConfig, title: str) -> list[str]:
    from ..answers.one_run import OneRun

    asked = pack.jobs[0].scored["test"]
    asked.answers.decoding, asked.answers.batch_size = decoding, decoding.batch_size
    one = OneRun(pack.attached, 0, machine.accelerator)
    outputs = asked.answers.decode(one, asked.split.questions, title)
    if outputs is None:
        raise ValueError(f"{title}: the logits were not finite, expected a run that did not diverge; make it again")
    return [text for text, _ in outputs]
