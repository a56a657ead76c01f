"""What the suite knows of an architecture, by the model_type of its config.json, without loading it.

Where methods attach: peft_methods/architectures.py. A model_type that is only there classifies through a head.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """model: transformers' class with the output layer, of a backbone that answers in text; the others (None) get a
    task's head on their features. decoder_only: source and target are one sequence. pooler: it has one, which may be
    built or left out."""

    model: str | None = None
    decoder_only: bool = False
    pooler: bool = False


KINDS = {
    "bart": Kind("BartForConditionalGeneration"),
    "bert": Kind(pooler=True),
    "gpt2": Kind("GPT2LMHeadModel", decoder_only=True),
    "llama": Kind("LlamaForCausalLM", decoder_only=True),
    "roberta": Kind(pooler=True),
    "t5": Kind("T5ForConditionalGeneration"),
}


def kind_of(model_type: str) -> Kind:
    """Of a model_type that is not in the table: one that classifies, without a pooler."""
    return KINDS.get(model_type, Kind())


def writes_text(model_type: str) -> bool:
    """Backbones that answer in text, through their own output layer; the others classify, through a head."""
    return kind_of(model_type).model is not None
