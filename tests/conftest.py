"""Tiny backbones built from configurations, and toy batches. Nothing is downloaded.

Fixtures give functions, so that a test says which architecture, size and number type it wants.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

VOCABULARY = 61
TOKENS = 24  # longest input of the tiny backbones


@pytest.fixture(autouse=True)
def _one_seed():
    """Whatever a test draws without a generator of its own follows from this seed, in any order of tests."""
    torch.manual_seed(20190614)


@pytest.fixture(params=["bert", "roberta"])
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture with an entry in the site table (test_sites.py checks that none is left out)."""
    return request.param


@pytest.fixture(scope="session")
def randomize() -> Callable[..., None]:
    """Add noise to every parameter: LayerNorms lose their unit gain, biases and LoRA's B are no longer zero."""

    def add_noise(module: nn.Module, seed: int = 0, std: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))

    return add_noise


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """tiny_config("bert", dropout=0.0, **changes): configuration of a two-layer backbone of width 16."""

    def build(architecture: str, dropout: float = 0.0, **changes: Any) -> Any:
        settings: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": TOKENS + 2,  # RoBERTa's positions start at pad_token_id + 1 = 2
            "type_vocab_size": 2 if architecture == "bert" else 1,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            **changes,
        }
        return {"bert": BertConfig, "roberta": RobertaConfig}[architecture](**settings)

    return build


@pytest.fixture(scope="session")
def tiny_backbone(tiny_config, randomize) -> Callable[..., PreTrainedModel]:
    """tiny_backbone("roberta", dtype, dropout=0.1): randomized weights, in eval mode; RoBERTa comes without pooler."""

    def build(architecture: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
        config = tiny_config(architecture, **changes)
        model: PreTrainedModel = (
            BertModel(config) if architecture == "bert" else RobertaModel(config, add_pooling_layer=False)
        )
        for name, parameter in model.named_parameters():
            nn.init.constant_(parameter, 1.0 if name.endswith("LayerNorm.weight") else 0.0)
        randomize(model, seed=1)
        nn.Module.to(model, dtype=dtype)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., dict[str, Tensor]]:
    """tiny_batch("bert", rows, width, seed): token ids with some padding on the right, as a tokenizer would give."""

    def draw(architecture: str, rows: int = 3, width: int = 9, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, width + 1, (rows,), generator=generator)
        lengths[0] = width
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        pad = 0 if architecture == "bert" else 1
        ids = torch.randint(4, VOCABULARY, (rows, width), generator=generator)
        batch = {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}
        if architecture == "bert":
            batch["token_type_ids"] = torch.randint(0, 2, (rows, width), generator=generator) * mask
        return batch

    return draw


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Any], dict[str, Tensor]]:
    """Copies of a module's parameters and buffers, or of a mapping of tensors, by name."""

    def copy(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = source.state_dict() if isinstance(source, nn.Module) else source
        return {name: tensor.detach().clone() for name, tensor in named.items()}

    return copy
