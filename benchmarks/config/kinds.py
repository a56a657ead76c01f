"""What the suite knows of an architecture, by the model_type of its config.json, without loading it.

Where methods attach: peft_methods/architectures.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """As it stands: one that classifies, through a head on its features, and has no pooler."""

    model: str | None = None  # transformers' class with the output layer, where the backbone answers in text itself
    decoder_only: bool = False  # source and target are one sequence
    pooler: bool = False  # it has one, which may be built or left out
    attention: str = "sdpa"  # transformers' implementation; eager where the architecture has no other
    read_by_the_model: frozenset[str] = frozenset()  # keys of config.json that the configuration class lacks


KINDS = {
    "bart": Kind("BartForConditionalGeneration"),
    "bert": Kind(pooler=True),
    "deberta-v2": Kind(
        attention="eager",
        read_by_the_model=frozenset(
            "position_buckets norm_rel_ebd share_att_key conv_kernel_size conv_act conv_groups".split()
        ),
    ),
    "gpt2": Kind("GPT2LMHeadModel", decoder_only=True),
    "llama": Kind("LlamaForCausalLM", decoder_only=True),
    "roberta": Kind(pooler=True),
    "t5": Kind("T5ForConditionalGeneration"),
}


def kind_of(model_type: str) -> Kind:
    """Its row of the table; that of a model_type without one: Kind()."""
    return KINDS.get(model_type, Kind())


def writes_text(model_type: str) -> bool:
    """Backbones that answer in text, through their own output layer; the others classify, through a head."""
    return kind_of(model_type).model is not None
