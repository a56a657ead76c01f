"""The task layer on the backbone: always trained, one per run, so that runs of a pack may differ in their labels.

BERT     dropout, output layer on the pooled vector (Devlin et al. 2019; the pooler belongs to the backbone)
RoBERTa  dropout, dense H x H, tanh, dropout, output layer on <s> (the dense layer is what LoRA's code trains too)
DeBERTa  the same on [CLS] with GELU, and dropout fields of its own (He et al. 2021; LoRA's code)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from peft_methods.dropout import Dropout


class ClassificationHead(nn.Module):
    """(B, T, H) hidden states and (B, H) pooled vector -> (B, num_labels) logits; one label means regression.

    dropout: the rate before the output layer; None leaves the configuration's.
    """

    def __init__(self, config: PreTrainedConfig, num_labels: int, dropout: float | None = None):
        super().__init__()
        hidden = config.hidden_size
        # BERT has a pooler of its own; in the others the head's dense layer takes its place.
        activations: dict[str, Callable[[Tensor], Tensor]] = {"roberta": torch.tanh, "deberta-v2": F.gelu}
        self.activation = activations.get(config.model_type)
        outer = config.hidden_dropout_prob
        if config.model_type == "deberta-v2":
            first, second = config.pooler_dropout, getattr(config, "cls_dropout", None)
        else:
            first = second = getattr(config, "classifier_dropout", None)
        self.dropout = Dropout(outer if first is None else first)
        self.dense = nn.Linear(hidden, hidden) if self.activation is not None else None
        self.inner_dropout = Dropout(outer if second is None else second) if self.dense is not None else None
        if dropout is not None:
            (self.dropout if self.inner_dropout is None else self.inner_dropout).p = dropout
        self.out_proj = nn.Linear(hidden, num_labels)
        for linear in (self.dense, self.out_proj):
            if linear is not None:
                nn.init.normal_(linear.weight, std=config.initializer_range)
                nn.init.zeros_(linear.bias)

    @property
    def needs_pooled(self) -> bool:
        """Whether the backbone's own pooler takes the place of a dense layer."""
        return self.dense is None

    def forward(self, hidden: Tensor, pooled: Tensor | None) -> Tensor:
        if self.dense is None or self.inner_dropout is None or self.activation is None:
            if pooled is None:
                raise ValueError("this head needs the backbone's pooled vector: load the backbone with its pooler")
            return self.out_proj(self.dropout(pooled))
        h = self.activation(self.dense(self.dropout(hidden[:, 0])))
        return self.out_proj(self.inner_dropout(h))
