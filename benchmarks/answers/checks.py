"""How a task is answered in text, checked before anything is loaded."""

import math

from ..config.kinds import kind_of, writes_text
from ..config.schema import RunConfig, TaskConfig, is_control, text_of


def check_generation(cfg: RunConfig) -> None:
    """Raises ValueError where texts are asked of a backbone that writes none, or decoding cannot be done as set."""
    if is_control(cfg) or not writes_text(cfg.backbone.model_type):
        what = cfg.method["_target_"].rpartition(".")[2] if is_control(cfg) else cfg.backbone.name
        raise ValueError(
            f"task={cfg.task.name} is answered in texts, which {what} does not write; choose a backbone that does "
            "(backbone=gpt2)"
        )
    decoding = cfg.decoding
    for name in ("beams", "max_new_tokens", "batch_size"):
        if getattr(decoding, name) < 1:
            raise ValueError(f"decoding.{name}={getattr(decoding, name)}: expected at least 1")
    for name in ("no_repeat_ngram", "min_new_tokens"):
        if getattr(decoding, name) < 0:
            raise ValueError(f"decoding.{name}={getattr(decoding, name)}: expected 0 or more")
    if decoding.min_new_tokens > decoding.max_new_tokens:
        raise ValueError(
            f"decoding.min_new_tokens={decoding.min_new_tokens} is more than decoding.max_new_tokens="
            f"{decoding.max_new_tokens}: expected at most as many"
        )
    if not math.isfinite(decoding.length_penalty):
        raise ValueError(f"decoding.length_penalty={decoding.length_penalty}: expected a finite number")
    counts = ("output", "source_and_output")
    for name, known in (
        ("length_counts", counts),
        ("ngram_counts", counts),
        ("early_stopping", ("heuristic", "never", "first")),
    ):
        if getattr(decoding, name) not in known:
            raise ValueError(f"decoding.{name}={getattr(decoding, name)!r}: expected one of {', '.join(known)}")
    apart = not kind_of(cfg.backbone.model_type).decoder_only
    if apart and "source_and_output" in (decoding.length_counts, decoding.ngram_counts):
        raise ValueError(
            f"decoding={decoding.name} counts source and output as one sequence, which they are not in "
            f"{cfg.backbone.name}: set decoding.length_counts=output decoding.ngram_counts=output, or another decoding="
        )


def check_text(cfg: RunConfig, where: str, task: TaskConfig) -> None:
    """Raises ValueError where a task has no form in words, or one that does not fit its columns and labels.

    where: the key of the task in the configuration.
    """
    text = text_of(task, cfg.scale)
    key = f"{where}.micro_text" if cfg.scale.data == "micro" else f"{where}.text"
    if text is None:
        raise ValueError(
            f"task {task.name} has no {key}, and {cfg.backbone.name} answers in text; choose a task that has one "
            "(task=glue/sst2), or add it in conf/task/"
        )
    expected = "no" if task.num_labels == 1 else task.num_labels
    if len(text.labels) != (task.num_labels if task.num_labels > 1 else 0) or len(set(text.labels)) < len(text.labels):
        raise ValueError(f"{key}.labels={text.labels}: expected {expected} different words; change conf/task/")
    try:
        text.source.format(**dict.fromkeys(task.text_columns, ""))
        missing = [column for column in task.text_columns if f"{{{column}}}" not in text.source]
        problem = f"no {{{missing[0]}}}" if missing else ""
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise ValueError(
            f"{key}.source={text.source!r}: expected the columns {', '.join(task.text_columns)} in braces ({problem}); "
            "change conf/task/"
        )
