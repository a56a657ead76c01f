"""Prompt tuning, and prefix tuning's embedding-only variant. Lester et al. 2021, arXiv:2104.08691, section 2; released
code google-research/prompt-tuning. Li & Liang 2021, arXiv:2101.00190, section 7.2.

    [e(x_1) ... e(x_n)] <- [p_1 ... p_P, e(x_1) ... e(x_n)]

Site     the model's input: P trained rows before the embedded text (of an encoder-decoder: of the encoder)
Trained  the rows, P x H; embedding-only trains them through an MLP, E (P x H) -> M -> H (reparameterization.py)
Added    P·H; with the MLP P·H + 2·H·M + H + M
Stored   P·H
Shapes   B batch, P length, H hidden_size, M mlp_hidden

Paper and code differ on the uniform start: paper (section 3.2) [-0.5, 0.5], code [0, 0.5): `init_range`. The code
samples the vocabulary without replacement from its first 5,000 ids, its most frequent pieces (special ones included).
A label's row is the mean of its pieces; labels come first, the rest is sampled (section 3.2). Where there are more
labels than rows, the first labels are taken. Mask, positions and lengths: peft_methods/inputs.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_methods.reparameterization import Reparameterized, check_length
from peft_methods.sites import Site, Sites

INITS = ("uniform", "normal", "sampled_vocabulary", "class_labels")


class PromptRows(nn.Module):
    """P rows before the text: embeddings e (B, T, H), where they belong (B, T) -> (B, T, H)."""

    place = "front"

    def __init__(self, start: Tensor | Reparameterized):
        super().__init__()
        self.mlp = start if isinstance(start, Reparameterized) else None
        self.rows = None if isinstance(start, Reparameterized) else nn.Parameter(start)
        self.length = len(start.embedding if isinstance(start, Reparameterized) else start)

    def prompt(self) -> Tensor:
        """(P, H): the rows, whatever makes them."""
        if self.mlp is not None:
            return self.mlp.columns(0, self.mlp.outer.out_features)
        assert self.rows is not None
        return self.rows

    def forward(self, embedded: Tensor, where: Tensor) -> Tensor:
        rows = self.prompt().to(embedded.dtype).expand(len(embedded), -1, -1)
        return embedded.masked_scatter(where[:, :, None], rows)

    def collapsed(self) -> dict[str, Tensor]:
        """What is stored: the rows."""
        return {"rows": self.prompt()}

    def collapse(self) -> None:
        """Forget the MLP and keep what it gives."""
        if self.mlp is not None:
            self.rows = nn.Parameter(self.prompt().detach().clone())
            self.mlp = None


@dataclass(frozen=True)
class Prompt:
    """Published values: conf/method/prompt.yaml, conf/method/embedding_only.yaml.

    mlp_hidden: width of the MLP, None for none (with one, the start is the MLP's own and `init` must be "normal").
    init: "uniform" in init_range, "normal" (0, 1), "sampled_vocabulary" or "class_labels". population: how many of the
    vocabulary's first ids are sampled from (all of a smaller one). labels: words or phrases, for init="class_labels".
    """

    result_version = 1
    length: int
    mlp_hidden: int | None
    init: str
    init_range: Sequence[float]
    population: int
    labels: Sequence[str]

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        check_length(self.length)
        if self.init not in INITS:
            raise ValueError(f"init={self.init!r}: expected one of {', '.join(INITS)}; change method.init")
        site = sites.embeddings()
        sites.check_room(self.length)
        if self.mlp_hidden is not None:
            if self.init != "normal":
                raise ValueError(f"init={self.init!r} with an MLP: its start is normal; change method.init")
            return {site: PromptRows(Reparameterized(self.length, site.width, self.mlp_hidden, site.width))}
        return {site: PromptRows(self._start(sites, site.width))}

    def _start(self, sites: Sites, width: int) -> Tensor:
        """(P, H): the first rows of training."""
        if self.init == "uniform":
            if len(self.init_range) != 2 or not self.init_range[0] <= self.init_range[1]:
                raise ValueError(
                    f"init_range={list(self.init_range)}: expected the lowest and the highest value; change "
                    "method.init_range"
                )
            low, high = self.init_range
            return torch.empty(self.length, width).uniform_(low, high)
        if self.init == "normal":
            return torch.randn(self.length, width)
        vocabulary = sites.embedding_rows()
        population = min(self.population, len(vocabulary))
        if population < self.length:
            raise ValueError(
                f"length={self.length} is more than the {population} entries that rows are sampled from: lower "
                f"method.length, or raise method.population={self.population} (the vocabulary has {len(vocabulary)})"
            )
        if vocabulary.device.type == "meta":
            return torch.empty(self.length, width)
        rows = vocabulary[torch.randperm(population, device="cpu")[: self.length].to(vocabulary.device)].float().cpu()
        if self.init == "class_labels":
            if not self.labels:
                raise ValueError("init=class_labels without labels: change method.labels, or method.init")
            for i, label in enumerate(list(self.labels)[: self.length]):
                rows[i] = vocabulary[sites.tokenize(label)].float().mean(0).cpu()
        return rows
