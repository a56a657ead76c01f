"""What a backbone is pretrained to do: the batches and the loss of each objective, and what its loss is compared with.

mlm               masking.py          BERT, RoBERTa   nats per masked token
causal_lm         causal_lm.py        GPT-2           nats per token
span_corruption   span_corruption.py  T5              nats per target token, sentinels and </s> among them
prefix_lm         prefix_lm.py        T5              nats per target token, </s> among them
denoising         denoising.py        BART            nats per token of the text, <s> and </s> among them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..micro.corpus import corpus
from .causal_lm import CausalStream
from .denoising import DenoisingStream
from .masking import PairStream, mlm_loss
from .prefix_lm import PrefixStream
from .span_corruption import SpanStream

OBJECTIVES = {  # -> the architectures it is for
    "mlm": ("bert", "roberta"),
    "causal_lm": ("gpt2",),
    "span_corruption": ("t5",),
    "prefix_lm": ("t5",),
    "denoising": ("bart",),
}


class Stream(Protocol):
    """Endless batches, in an order that a seed fixes."""

    def batch(self) -> dict[str, Tensor]:
        """What the model takes; labels are -100 where nothing is to be predicted."""


def check_objective(objective: str, model_type: str) -> None:
    """Refuse an objective that the architecture cannot be trained with."""
    if model_type not in OBJECTIVES.get(objective, ()):
        known = " or ".join(repr(name) for name, types in OBJECTIVES.items() if model_type in types)
        raise ValueError(
            f"no objective {objective!r} for {model_type}; expected {known} (benchmarks/pretraining/objectives.py)"
        )


def documents_of(split: str) -> list[list[str]]:
    """The corpus's documents, each a list of sentences."""
    return [document.split("\n") for document in corpus(split)]


def make_stream(
    objective: str,
    model_type: str,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Sequence[str]],
    batch_size: int,
    length: int,
    seed: int,
    mask_probability: float = 0.3,
) -> Stream:
    """`length`: tokens of a chunk (the encoder's, for T5); pairs of sentences are as long as they are."""
    if objective == "mlm":
        return PairStream(tokenizer, documents, batch_size, seed, model_type == "bert", mask_probability)
    if objective == "denoising":
        return DenoisingStream(tokenizer, documents, batch_size, length, seed)
    texts = [" ".join(lines) for lines in documents]
    streams: dict[str, Callable[..., Stream]] = {
        "causal_lm": CausalStream,
        "span_corruption": SpanStream,
        "prefix_lm": PrefixStream,
    }
    return streams[objective](tokenizer, texts, batch_size, length, seed)


def training_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of what the batch's labels ask for; BERT's includes "does it follow?"."""
    if model.config.model_type in OBJECTIVES["mlm"]:
        return mlm_loss(model, batch)
    return model(**batch, use_cache=False).loss


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    objective: str,
    batches: int = 20,
    documents: Sequence[Sequence[str]] | None = None,
) -> float:
    """The objective's loss on the validation corpus, or on these documents, in its unit (see above); the same batches
    and noise every time."""
    stream = _validation_stream(objective, model.config.model_type, tokenizer, documents)
    model.eval()
    if objective == "mlm":
        losses = [mlm_loss(model, stream.batch(), next_sentence=False) for _ in range(batches)]
    else:
        losses = [training_loss(model, stream.batch()) for _ in range(batches)]
    return float(np.mean([loss.item() for loss in losses]))


def unigram_loss(
    tokenizer: PreTrainedTokenizerBase, objective: str, model_type: str, batches: int = 20, documents: int | None = None
) -> float:
    """The same loss of a model that knows only how frequent each label is in training: what context has to beat.

    documents: of the training corpus that are counted in; None: all.
    """
    texts = documents_of("train")[:documents]
    training = make_stream(objective, model_type, tokenizer, texts, 64, tokenizer.model_max_length, seed=0)
    validation = _validation_stream(objective, model_type, tokenizer)
    counts = torch.ones(len(tokenizer), dtype=torch.float64)  # one each: none is impossible
    for _ in range(10 * batches):
        counts += torch.bincount(_labels(training), minlength=len(tokenizer))
    nats = -(counts / counts.sum()).log()
    return float(torch.cat([nats[_labels(validation)] for _ in range(batches)]).mean())


def _validation_stream(
    objective: str,
    model_type: str,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Sequence[str]] | None = None,
) -> Stream:
    documents = documents_of("validation") if documents is None else documents
    return make_stream(objective, model_type, tokenizer, documents, 64, tokenizer.model_max_length, seed=1)


def _labels(stream: Stream) -> Tensor:
    labels = stream.batch()["labels"]
    return labels[labels >= 0]
