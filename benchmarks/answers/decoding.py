"""Beam search through transformers' `generate` with a run's method attached: sources in, texts out.

Two things differ between transformers 5 and the papers' code, and are settings here (DecodingConfig): what the length
penalty counts, and in what an n-gram must not come twice. Rows go in by length, longest first, padded on the left; a
row's output depends on no other row.

B rows of a batch, K beams, T tokens of the longest source, U of the longest output.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from peft_methods.attached import Attached
from peft_methods.inputs import Batch

from ..config.schema import DecodingConfig


def write(
    attached: Attached, batches: list[Batch | None], cfg: DecodingConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Tensor | None]:
    """(B, U) token ids that each run writes after its batch, by beam search as `cfg` says."""
    arguments: dict[str, Any] = {
        "num_beams": cfg.beams,
        "do_sample": False,
        "max_new_tokens": cfg.max_new_tokens,
        "eos_token_id": end_tokens(cfg, tokenizer),
        "pad_token_id": end_tokens(cfg, tokenizer)[0],
    }
    if cfg.beams > 1:
        arguments |= {"length_penalty": cfg.length_penalty}
        arguments |= {"early_stopping": {"heuristic": False, "never": "never", "first": True}[cfg.early_stopping]}
    if cfg.min_new_tokens:
        arguments["min_new_tokens"] = cfg.min_new_tokens
    if cfg.banned:
        arguments["suppress_tokens"] = [token_of(text, tokenizer, "banned") for text in cfg.banned]
    if cfg.no_repeat_ngram and cfg.ngram_counts == "source_and_output":
        arguments["no_repeat_ngram_size"] = cfg.no_repeat_ngram
    elif cfg.no_repeat_ngram:
        arguments["logits_processor"] = [NoRepeatInOutput(cfg.no_repeat_ngram)]
    with contextlib.ExitStack() as stack:
        if cfg.beams > 1 and cfg.length_counts == "source_and_output":
            lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches if batch is not None])
            stack.enter_context(source_lengths_counted(attached.backbone, lengths))
        return attached.generate(batches, **arguments)


class NoRepeatInOutput(LogitsProcessor):
    """No n-gram twice in the output; the source does not count (LoRA's gpt2_beam.py). One call of `generate` each."""

    def __init__(self, size: int):
        self.within = NoRepeatNGramLogitsProcessor(size)
        self.source: int | None = None  # tokens before the output

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.source is None:
            self.source = input_ids.shape[1]
        return cast(Tensor, self.within(input_ids[:, self.source :], scores))


@contextlib.contextmanager
def source_lengths_counted(model: PreTrainedModel, lengths: Tensor) -> Iterator[None]:
    """Inside, the length penalty divides by (source + output) ** penalty, the end token not counted: transformers 3.2.

    lengths: (B,) tokens of each source. Beam search asks two functions for its penalized scores; they get scores that
    are penalized already, and a penalty of 0.
    """
    finished, heuristic = model._update_finished_beams, model._check_early_stop_heuristic

    def update(**kwargs: Any) -> Any:
        length = lengths[:, None] + kwargs["cur_len"] - kwargs["decoder_prompt_len"]
        kwargs["topk_log_probs"] = kwargs["topk_log_probs"] / length ** kwargs["length_penalty"]
        return finished(**kwargs | {"length_penalty": 0.0})

    def unsatisfied(**kwargs: Any) -> Any:
        longest = kwargs["early_stopping"] == "never" and kwargs["length_penalty"] > 0
        output = kwargs["max_length" if longest else "cur_len"] - kwargs["decoder_prompt_len"]
        length = lengths[:, None] + output
        kwargs["running_beam_scores"] = kwargs["running_beam_scores"] / length ** kwargs["length_penalty"]
        return heuristic(**kwargs | {"length_penalty": 0.0})

    model._update_finished_beams, model._check_early_stop_heuristic = update, unsatisfied
    try:
        yield
    finally:
        del model._update_finished_beams, model._check_early_stop_heuristic


def read(ids: list[int], cfg: DecodingConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """The text of an output up to its end, stripped, and whether it has one."""
    ends = end_tokens(cfg, tokenizer)
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    start = int(stop != 0 and ids[0] == tokenizer.bos_token_id)  # BART writes <s> first
    text = tokenizer.decode(ids[start:stop], skip_special_tokens=False).strip()
    return clean_up(text) if cfg.clean_up else text, stop is not None


def check_tokens(cfg: DecodingConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError where a text of the settings is no single token."""
    end_tokens(cfg, tokenizer)
    for text in cfg.banned:
        token_of(text, tokenizer, "banned")


def end_tokens(cfg: DecodingConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends an output: the tokenizer's end token, then cfg.ends."""
    return [int(tokenizer.eos_token_id), *(token_of(text, tokenizer, "ends") for text in cfg.ends)]


def token_of(text: str, tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """The one token that a text is. Raises ValueError where it is several."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"decoding.{name}: {text!r} is {len(ids)} tokens of {tokenizer.name_or_path}, expected one; change or "
            f"leave out decoding.{name}"
        )
    return int(ids[0])


_JOINED = re.compile(r" (\.|\?|!|,|n't|'m|'s|'ve|'re)")


def clean_up(text: str) -> str:
    """What transformers 3.2 did to every decoded text (clean_up_tokenization_spaces): "is n't ." becomes "isn't.".

    transformers 5 does it for no GPT-2.
    """
    return _JOINED.sub(r"\1", text.replace(" ' ", "'"))
