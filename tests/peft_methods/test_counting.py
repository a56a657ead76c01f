"""Counts of the published backbones against the papers, on the meta device: configurations, no weights.

Houlsby   Houlsby et al. 2019, Table 1 and section 3; counts and denominator follow its released code
LoRA      Hu et al. 2021, Table 2; the shipped RoBERTa checkpoints hold the numbers of the `stored` column
AdapterP  Pfeiffer's adapter in Hu et al. 2021, Table 2, called Adapter^D there for RoBERTa-base (Rückle et al. 2021)
"""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from peft_methods.attach import attach
from peft_methods.baselines import Full, HeadOnly
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import Houlsby, Pfeiffer
from peft_methods.counting import ParameterCounts, count_parameters
from peft_methods.heads import ClassificationHead
from peft_methods.lora import Lora

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
ROBERTA: dict[str, Any] = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}


def build(name: str):
    with torch.device("meta"):
        return {
            "bert-base-uncased": lambda: BertModel(BertConfig()),
            "bert-large-uncased": lambda: BertModel(BertConfig(**LARGE)),
            "roberta-base": lambda: RobertaModel(RobertaConfig(**ROBERTA), add_pooling_layer=False),
            "roberta-large": lambda: RobertaModel(RobertaConfig(**ROBERTA, **LARGE), add_pooling_layer=False),
        }[name]()


def counted(name: str, method, labels: int) -> ParameterCounts:
    backbone = build(name)
    return count_parameters(attach(backbone, [method], [lambda: ClassificationHead(backbone.config, labels)]))


def houlsby(m: int, train_layer_norms: bool = True) -> Houlsby:
    return Houlsby(m, "gelu_tanh", "truncated_normal", 1e-2, train_layer_norms)


def pfeiffer(m: int, skip_layers: int = 0) -> Pfeiffer:
    return Pfeiffer(m, "relu", "normal", 0.02, skip_layers)


def lora(r: int) -> Lora:
    return Lora(r, 16.0, 0.0, ("query", "value"), "kaiming_uniform")


# backbone: all parameters of the encoder (BERT with its pooler, RoBERTa without), those of the layers
BACKBONES = {
    "bert-base-uncased": (109_482_240, 85_054_464),
    "bert-large-uncased": (335_141_888, 302_309_376),
    "roberta-base": (124_055_040, 85_054_464),
    "roberta-large": (354_310_144, 302_309_376),
}

# paper and row, what it prints; backbone, method, labels; method, added and stored (method + head) parameters
PUBLISHED = [
    ("Houlsby Table 1, Full 100 %", "bert-large-uncased", Full(), 2, 335_141_888, 0, 335_143_938),
    ("Houlsby Table 1, Adapters (64) 2.1 %", "bert-large-uncased", houlsby(64), 2, 6_444_032, 6_343_680, 6_446_082),
    ("Houlsby section 3.4, m = 64 about 2M", "bert-base-uncased", houlsby(64), 2, 2_417_664, 2_379_264, 2_419_202),
    ("LoRA Table 2, FT 125.0M", "roberta-base", Full(), 3, 124_055_040, 0, 124_647_939),
    ("LoRA Table 2, BitFit 0.1M", "roberta-base", BitFit("all"), 3, 102_144, 0, 695_043),
    ("LoRA Table 2, Adpt^D 0.3M", "roberta-base", pfeiffer(48, skip_layers=8), 3, 298_176, 298_176, 891_075),
    ("LoRA Table 2, Adpt^D 0.9M", "roberta-base", pfeiffer(48), 3, 894_528, 894_528, 1_487_427),
    ("LoRA Table 2, LoRA 0.3M", "roberta-base", lora(8), 3, 294_912, 294_912, 887_811),
    ("the head alone", "roberta-base", HeadOnly(), 3, 0, 0, 592_899),
    ("LoRA Table 2, FT 355.0M", "roberta-large", Full(), 3, 354_310_144, 0, 355_362_819),
    ("LoRA Table 2, LoRA 0.8M", "roberta-large", lora(8), 3, 786_432, 786_432, 1_839_107),
    ("LoRA Table 2, Adpt^P 3.0M", "roberta-large", pfeiffer(64), 3, 3_171_840, 3_171_840, 4_224_515),
    ("LoRA Table 2, Adpt^P 0.8M", "roberta-large", pfeiffer(16), 3, 811_392, 811_392, 1_864_067),
    ("LoRA Table 2, Adpt^H 6.0M", "roberta-large", houlsby(64, False), 3, 6_343_680, 6_343_680, 7_396_355),
    ("LoRA Table 2, Adpt^H 0.8M", "roberta-large", houlsby(8, False), 3, 835_968, 835_968, 1_888_643),
]


@pytest.mark.parametrize(
    ("backbone", "method", "labels", "trained", "added", "stored"),
    [row[1:] for row in PUBLISHED],
    ids=[row[0] for row in PUBLISHED],
)
def test_published_rows(backbone, method, labels, trained, added, stored):
    counts = counted(backbone, method, labels)
    merged = 0 if isinstance(method, Lora) else added
    assert counts == ParameterCounts(trained, stored - trained, added, stored, merged, *BACKBONES[backbone])


def test_layer_norms_alone_are_forty_thousand():
    """Houlsby section 3.4: tuning BERT-base's LayerNorms, "40k parameters", is what the adapters come on top of."""
    counts = counted("bert-base-uncased", houlsby(64), 2)
    assert counts.method - counts.added == 38_400 == 25 * 2 * 768


def test_adapters_64_are_the_printed_share_of_the_layers():
    """2.1 % holds for the Transformer layers as denominator, and not for the whole network (1.9 %)."""
    counts = counted("bert-large-uncased", houlsby(64), 2)
    assert f"{counts.added / counts.layers:.1%}" == "2.1%"
    assert f"{counts.added / counts.backbone:.1%}" == "1.9%"


def test_counting_allocates_nothing():
    attached = attach(build("bert-large-uncased"), [houlsby(64)])
    assert all(p.device.type == "meta" for p in attached.parameters())


def test_runs_of_a_pack_are_counted_apart(tiny_backbone):
    backbone = tiny_backbone("bert")
    attached = attach(
        backbone, [lora(1), HeadOnly(), lora(2)], [None, lambda: ClassificationHead(backbone.config, 5), None]
    )
    counts = [count_parameters(attached, k) for k in range(3)]
    assert [c.method for c in counts] == [128, 0, 256]
    assert [c.head for c in counts] == [0, 85, 0]
