"""The task layer on the backbone: always trained, one per run, so that runs of a pack may differ in their labels.

BERT     dropout, output layer on the pooled vector (Devlin et al. 2019; the pooler belongs to the backbone)
RoBERTa  dropout, dense H x H, tanh, dropout, output layer on <s> (the dense layer is what LoRA's code trains too)
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from peft_methods.dropout import Dropout


class ClassificationHead(nn.Module):
    """(B, T, H) hidden states and (B, H) pooled vector -> (B, num_labels) logits; one label means regression."""

    def __init__(self, config: PreTrainedConfig, num_labels: int):
        super().__init__()
        hidden = config.hidden_size
        classifier_dropout = getattr(config, "classifier_dropout", None)
        self.dropout = Dropout(config.hidden_dropout_prob if classifier_dropout is None else classifier_dropout)
        # RoBERTa has no pooler of its own: the head's dense layer takes its place.
        self.dense = nn.Linear(hidden, hidden) if config.model_type == "roberta" else None
        self.inner_dropout = Dropout(self.dropout.p) if self.dense is not None else None
        self.out_proj = nn.Linear(hidden, num_labels)
        for linear in (self.dense, self.out_proj):
            if linear is not None:
                nn.init.normal_(linear.weight, std=config.initializer_range)
                nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, pooled: Tensor | None) -> Tensor:
        if self.dense is None or self.inner_dropout is None:
            if pooled is None:
                raise ValueError("this head needs the backbone's pooled vector: load the backbone with its pooler")
            return self.out_proj(self.dropout(pooled))
        h = torch.tanh(self.dense(self.dropout(hidden[:, 0])))
        return self.out_proj(self.inner_dropout(h))
