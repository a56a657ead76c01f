"""Prefix tuning and infix tuning. Li & Liang 2021, arXiv:2101.00190; released code XiangLi1999/PrefixTuning.

    prefix   K <- [P_k; K], V <- [P_v; V]                                                          (section 4.2)
    infix    [source; e; target] goes through the model; at the places of e, K <- K + P_k, V <- V + P_v   (section 7.3)

Site     the keys and values of every attention; the infix's e (P x H) at the model's input
Trained  without an MLP P_k and P_v; with one E and the MLP of reparameterization.py, one for all layers and positions
         (an encoder-decoder has three: encoder, decoder, cross-attention); the infix's e
Added    prefix without MLP 2·L·P·A; with P·H + M·(H + 1) for each MLP and 2·L·A·(M + 1); infix P·H more
Stored   2·L·P·A, the infix P·H more: keys and values without their MLP
Shapes   B batch, P length, H hidden_size, A heads of the keys times head size (H, but for Llama and some T5),
         M mlp_hidden, L attentions (3 a layer pair in an encoder-decoder)

Paper and code differ on: the start (paper A.3: uniform in [0, 1]; code: N(0, 1) through the MLP, as here); "0.1%",
which counts what is stored, 7 % of GPT-2 medium train; the infix's second embedding e, which the paper leaves out.
The released infix counts positions from the padded source in training and from the true one in generation; here both
are the true ones. Positions of a decoder's text (GPT-2, Llama) start after the prefix; those of BERT's and BART's do
not. Llama's rotation turns no key of a prefix, but those made from words, which the model itself has turned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.attention import keys_and_values
from peft_methods.reparameterization import Reparameterized, check_length
from peft_methods.sites import Site, Sites


class KeysValues(nn.Module):
    """The P keys and values of one attention: parameters, or columns of a shared MLP."""

    def __init__(self, length: int, width: int, mlp: Reparameterized | None, start: int):
        super().__init__()
        self.rows, self.width, self.mlp, self.start = length, width, mlp, start
        self.keys = self.values = None
        if mlp is None:
            self.keys, self.values = (nn.Parameter(torch.randn(length, width)) for _ in range(2))

    def pair(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (P, width) each."""
        if self.mlp is not None:
            both = self.mlp.columns(self.start, self.start + 2 * self.width)
            return both[:, : self.width], both[:, self.width :]
        assert self.keys is not None, "neither MLP nor rows"
        assert self.values is not None
        return self.keys, self.values

    def heads(self, heads: int) -> tuple[Tensor, Tensor]:
        """The same, (heads, P, width / heads) each."""
        keys, values = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in self.pair())
        return keys, values

    def collapsed(self) -> dict[str, Tensor]:
        """What is stored: keys and values, whatever makes them."""
        keys, values = self.pair()
        return {"keys": keys, "values": values}

    def collapse(self) -> None:
        """Forget the MLP and keep what it gives."""
        if self.mlp is not None:
            with torch.no_grad():
                self.keys, self.values = (nn.Parameter(x.clone()) for x in self.pair())
            self.mlp = None


class PrefixAt(KeysValues):
    """Keys and values before those of the text."""

    @property
    def length(self) -> int:
        """Positions it takes before the text."""
        return self.rows

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = (x.to(k.dtype).expand(len(k), -1, -1, -1) for x in self.heads(k.shape[1]))
        return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


class InfixRows(nn.Module):
    """The second embedding: rows (P, H) between source and target. It remembers where they are for the attentions."""

    place = "boundary"

    def __init__(self, length: int, width: int):
        super().__init__()
        self.length = length
        self.embedding = nn.Parameter(torch.randn(length, width))
        self.where: Tensor | None = None  # (B, T) of the latest call

    def forward(self, embedded: Tensor, where: Tensor) -> Tensor:
        self.where = where
        rows = self.embedding.to(embedded.dtype).expand(len(embedded), -1, -1)
        return embedded.masked_scatter(where[:, :, None], rows)


class InfixAt(KeysValues):
    """What is added to the keys and values at the infix's places. The infix's own queries do not see it: in the
    released code they have passed through the plain model before."""

    length = 0  # its places are in the text's positions already

    def __init__(self, second: InfixRows, length: int, width: int, mlp: Reparameterized | None, start: int):
        super().__init__(length, width, mlp, start)
        self.second = [second]  # in a list: it is a module of the model's input, not of this one

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        where = self._where(len(k), k.shape[2])[:, None, :, None]
        pair = (x.to(k.dtype).expand(len(k), -1, -1, -1) for x in self.heads(k.shape[1]))
        added = [torch.zeros_like(k).masked_scatter(where, rows) for rows in pair]
        return k + added[0], v + added[1]

    def plain_queries(self, rows: int, queries: int) -> Tensor | None:
        """(B, queries): whose queries see the plain keys and values; None where there are none of them."""
        assert self.second[0].where is not None
        return self._where(rows, queries) if queries >= self.second[0].where.shape[1] else None

    def _where(self, rows: int, length: int) -> Tensor:
        where = self.second[0].where
        assert where is not None
        where = where.repeat_interleave(rows // len(where), dim=0)  # beam search repeats rows
        return F.pad(where, (0, length - where.shape[1]))


@dataclass(frozen=True)
class Prefix:
    """Published values: conf/method/prefix.yaml.

    mlp_hidden: width of the MLP, None for none. init: "random", or "words": the keys and values that the frozen model
    computes for `words` (which must have `length` tokens), exactly without an MLP, by fitting the MLP with one.
    """

    result_version = 1
    length: int
    mlp_hidden: int | None
    init: str
    words: str

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        if self.init not in ("random", "words"):
            raise ValueError(f"init={self.init!r}: expected random or words; change method.init")
        if sites.architecture.counts_prefix:
            sites.check_room(self.length)
        modules, mlps = _at_attentions(sites, self.length, self.mlp_hidden, PrefixAt)
        if self.init == "words":
            tokens = sites.tokenize(self.words)
            if len(tokens) != self.length:
                raise ValueError(
                    f"words={self.words!r} has {len(tokens)} tokens, length={self.length}: they must be equal; change "
                    f"method.length to {len(tokens)} or method.words"
                )
            if sites.backbone.device.type != "meta":
                _start_from_words(sites, tokens, modules, mlps)
        return dict(modules)


@dataclass(frozen=True)
class Infix:
    """Decoders only. Published values: conf/method/infix.yaml."""

    result_version = 1
    length: int
    mlp_hidden: int | None

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        if not sites.architecture.decoder_only:
            raise ValueError(f"infix lies between source and target of one decoder: {sites.model_type} is not one")
        sites.check_room(self.length)
        second = InfixRows(self.length, sites.embeddings().width)

        def at(length: int, width: int, mlp: Reparameterized | None, start: int) -> InfixAt:
            return InfixAt(second, length, width, mlp, start)

        modules, _ = _at_attentions(sites, self.length, self.mlp_hidden, at)
        return {sites.embeddings(): second, **modules}


def _at_attentions(
    sites: Sites, length: int, mlp_hidden: int | None, make: Callable[..., Any]
) -> tuple[dict[Site, Any], dict[tuple[str, str], Reparameterized]]:
    """A module at every attention; one MLP for each stack and kind of attention."""
    check_length(length)
    groups: dict[tuple[str, str], list[Site]] = {}
    for site in sites.attentions():
        groups.setdefault((site.stack, site.role), []).append(site)
    modules: dict[Site, Any] = {}
    mlps: dict[tuple[str, str], Reparameterized] = {}
    for group, members in groups.items():
        widths = [_key_site(sites, site, "key").width for site in members]
        mlp = None
        if mlp_hidden is not None:
            mlp = mlps[group] = Reparameterized(length, sites.base.config.hidden_size, mlp_hidden, 2 * sum(widths))
        start = 0
        for site, width in zip(members, widths, strict=True):
            modules[site] = make(length, width, mlp, start)
            start += 2 * width
    return modules, mlps


def _key_site(sites: Sites, attention: Site, which: str) -> Site:
    """The projection that gives an attention's keys or values."""
    layer = attention.name.removesuffix(attention.role)
    return sites.by_name[f"{layer}{'cross_' if attention.role == 'cross_kv' else ''}{which}"]


def _start_from_words(
    sites: Sites, tokens: list[int], modules: dict[Site, Any], mlps: dict[tuple[str, str], Reparameterized]
) -> None:
    activations = _activations(sites, tokens, list(modules))
    for group, mlp in mlps.items():
        mlp.fit(torch.cat([x for s in modules if (s.stack, s.role) == group for x in activations[s]], dim=1))
    if not mlps:
        with torch.no_grad():
            for site, module in modules.items():
                module.keys.copy_(activations[site][0])
                module.values.copy_(activations[site][1])


@torch.no_grad()
def _activations(sites: Sites, tokens: list[int], attentions: list[Site]) -> dict[Site, tuple[Tensor, Tensor]]:
    """Keys and values, (len(tokens), width) each, as the frozen model's attentions get them for the tokens."""
    training, ids = sites.backbone.training, torch.tensor([tokens], device=sites.backbone.device)
    decoder = {"decoder_input_ids": ids} if len(sites.architecture.stacks) > 1 else {}
    try:
        with keys_and_values(sites.backbone) as read:
            sites.backbone.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)
            pairs = {site: read[sites.module(site)] for site in attentions}
    finally:
        sites.backbone.train(training)
    return {site: (_rows(keys), _rows(values)) for site, (keys, values) in pairs.items()}


def _rows(x: Tensor) -> Tensor:
    """(1, heads, T, d) -> (T, heads * d), in float32 on the CPU."""
    return x[0].transpose(0, 1).flatten(1).float().cpu()
