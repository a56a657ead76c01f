"""A backbone with K runs on it: forward and generation. Attaching is in attach.py, merging in merge.py.

A pack stacks the batches of its runs along the first axis, pushes them through the backbone together, and at each
site routes every run's rows through that run's module. K = 1 is the ordinary case. Nothing here knows a method or an
architecture: methods name sites, architectures.py names modules, hooks.py puts the two together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_methods.attention import AttentionPlace
from peft_methods.dropout import DropoutStream
from peft_methods.inputs import Batch, Stacked, stack
from peft_methods.merge import Merged
from peft_methods.run_modules import RunModules
from peft_methods.sites import EMBEDDINGS, Sites

TAKEN: "WeakKeyDictionary[nn.Module, ref[Attached]]" = WeakKeyDictionary()  # base models that have runs on them


class Attached(nn.Module):
    """A backbone with K runs on it. Call it with one batch per run; it returns one tensor per run.

    Made by `attach`; `detach` restores the backbone.
    """

    def __init__(self, sites: Sites, runs: Sequence[RunModules], streams: Sequence[DropoutStream]):
        super().__init__()
        self.backbone: PreTrainedModel = sites.backbone
        self.runs = nn.ModuleList(runs)
        self.streams = list(streams)
        self.sites = sites
        self.stacked = Stacked()
        self.places: list[AttentionPlace] = []
        self.dropout_calls: dict[str, int] = {}
        self.calls = 0  # of forward and generate that are going on
        self.merged = Merged(sites)
        self.undo = ExitStack()  # a step for every change to the backbone; `detach` takes them, the last first

    def run(self, k: int) -> RunModules:
        """What run k trains."""
        return cast(RunModules, self.runs[k])

    def owners(self, site: str) -> list[Any]:
        """Per run its module at a site, or None."""
        return [self.run(k).at(site) for k in range(len(self.runs))]

    def prefix(self, k: int) -> int:
        """How many positions run k's keys and values take before the text."""
        return max((o.length for place in self.places if (o := place.owners[k]) is not None), default=0)

    def positions(self, k: int) -> int | None:
        """How many tokens the position table leaves to run k's text; None where positions are relative."""
        limit = self.sites.architecture.position_limit
        if limit is None:
            return None
        own = self.run(k).at(EMBEDDINGS)
        taken = self.prefix(k) * self.sites.architecture.counts_prefix + (0 if own is None else own.length)
        return limit(self.backbone.config) - taken

    def forward(self, batches: Sequence[Batch | None]) -> list[Tensor | None]:
        """One batch per run, padded to its own width: `input_ids` (B_k, T_k), `attention_mask`, `token_type_ids` where
        the backbone has them, `decoder_input_ids` (B_k, U_k) for an encoder-decoder, `boundary` (B_k,) for infixes.
        None skips a run that has ended. An infix stands before the token at `boundary`: the first target token
        is predicted by the last of the source, so that one must lie behind the infix (a separator, say).

        Returns per run the head's logits (B_k, num_labels); without a head the language model's logits (B_k, T_k or
        U_k, vocabulary), or the last hidden states of a backbone without one, at the tokens that were given.
        With gradient checkpointing, run backward before the next call and before a stream's step moves on: the layers
        are recomputed from the rows and masks of the latest call.
        """
        inputs = self._stack(batches)
        self._check_first_tokens(batches)
        with self._calling():
            outputs = self.backbone(**inputs)
        pooled = getattr(outputs, "pooler_output", None)
        decoded = "decoder_input_ids" in self.stacked.inputs
        hidden = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
        results: list[Tensor | None] = []
        for k, batch in enumerate(batches):
            if batch is None:
                results.append(None)
                continue
            rows, kept, head = self.stacked.rows[k], self.stacked.kept[k], self.run(k).head
            own = hidden[rows]
            if decoded or kept is None:
                own = own[:, : batch["decoder_input_ids" if decoded else "input_ids"].shape[1]]
            else:
                own = own.gather(1, kept[:, :, None].expand(-1, -1, own.shape[2]))
            of_pooler = None if pooled is None else self.widened(pooled[rows])
            results.append(own if head is None else head(self.widened(own), of_pooler))
        return results

    @torch.no_grad()
    def generate(self, batches: Sequence[Batch | None], **settings: Any) -> list[Tensor | None]:
        """What each run's model writes after its inputs: token ids (B_k, N), without the inputs or the decoder's start.

        settings: those of transformers' `generate`. Rows may be padded on either side.
        """
        if not hasattr(self.backbone, "generate"):
            raise ValueError(f"{type(self.backbone).__name__} has no language-modelling head: it cannot generate")
        if self.training:
            raise ValueError("generation needs evaluation mode: call eval() first")
        decoder_only = self.sites.architecture.decoder_only
        inputs = self._stack(batches, to_the_right=decoder_only)
        inputs.pop("position_ids", None)  # generate counts them itself, from the mask too
        config = self.backbone.config
        self._check_room(inputs, settings.get("max_new_tokens"))
        if config.pad_token_id is None:
            end = config.eos_token_id  # Llama 3 has several
            settings = {"pad_token_id": end[0] if isinstance(end, list) else end, **settings}
        with self._calling():
            written = cast(Any, self.backbone).generate(**inputs, **settings)
        written = written[:, inputs["input_ids"].shape[1] if decoder_only else 1 :]
        each = len(written) // self.stacked.total
        return [
            None if batch is None else written[rows.start * each : rows.stop * each]
            for batch, rows in zip(batches, self.stacked.rows, strict=True)
        ]

    def _check_room(self, inputs: dict[str, Tensor], new: int | None) -> None:
        """The position table bounds what is written, too."""
        limit = self.sites.architecture.position_limit
        if limit is None or new is None:
            return
        counted = self.sites.architecture.counts_prefix
        prefix = max(self.prefix(k) for k in range(len(self.runs))) * counted
        # a decoder reads its start and all it writes but the last
        taken = prefix + inputs["input_ids"].shape[1] - 1 if self.sites.architecture.decoder_only else 0
        if taken + new > (most := limit(self.backbone.config)):
            raise ValueError(
                f"max_new_tokens={new} with {taken} positions before it: {self.sites.model_type} has {most}; ask for "
                "fewer, or shorten the text or the prompt"
            )

    def train(self, mode: bool = True) -> "Attached":
        """Training mode; the backbone's own dropout modules stay off, the runs' streams take their place."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        return self

    def detach(self) -> PreTrainedModel:
        """Give the backbone back as `attach` found it: weights, hooks, and whatever was switched on or off meanwhile.

        What was trained stays here to be read; calling, generating and merging are over.
        """
        self.undo.close()
        return self.backbone

    def merge(self) -> None:
        """Add each low-rank update to its frozen weight: same logits without the update's matrix products (the hooks
        themselves stay, a fixed cost a layer; `peft-bench latency` measures it). One run only; `unmerge` undoes it bit
        for bit."""
        self._check_attached()
        if len(self.runs) != 1:
            raise ValueError(f"merge needs exactly one run on the backbone, this pack has {len(self.runs)}")
        self.merged.add(self.run(0))

    def unmerge(self) -> None:
        """Restore the frozen weights as they were before `merge`."""
        self.merged.restore()

    def each_run(self, tensors: Sequence[Tensor], function: Callable[..., Tensor]) -> Tensor:
        """function(k, *rows of run k) for every run with rows, put together again along the first axis."""
        self.check_called()
        rows = self.stacked.rows
        active = [k for k in range(len(rows)) if rows[k].stop > rows[k].start]
        if len(active) == 1:
            return function(active[0], *tensors)
        each = len(tensors[0]) // self.stacked.total  # beam search has several hypotheses of every row
        own = {k: slice(rows[k].start * each, rows[k].stop * each) for k in active}
        return torch.cat([function(k, *(t[own[k]] for t in tensors)) for k in active])

    def widened(self, x: Tensor) -> Tensor:
        """What a run's own module reads: float32 where the backbone is kept in half precision, as the module is."""
        half = self.backbone.dtype.itemsize < 4
        return x.float() if half and x.is_floating_point() else x

    def paddings(self) -> Tensor:
        """(B,) padding on the left of each row of the input."""
        self.check_called()
        return self.stacked.inputs["attention_mask"].long().argmax(1)

    def no_paddings(self) -> Tensor:
        """(B,) zeros: a decoder's own tokens are padded on the right."""
        return torch.zeros_like(self.paddings())

    def check_called(self) -> None:
        """Raises ValueError where the backbone was called without its runs: rows and places would be those of the
        latest call. A backward pass may come after it, and recomputes layers under gradient checkpointing."""
        in_backward = torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint asks it
        if not self.calls and not in_backward:
            raise ValueError(
                f"this {type(self.backbone).__name__} has runs attached and was called itself: call the Attached, or "
                "peft_methods.attach.attached_to(backbone).detach() first"
            )

    @contextmanager
    def _calling(self) -> Iterator[None]:
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    def _check_first_tokens(self, batches: Sequence[Batch | None]) -> None:
        """Raises ValueError where a head, which reads the first position, would find padding there."""
        for k, batch in enumerate(batches):
            if batch is not None and self.run(k).head is not None and not bool(batch["attention_mask"][:, 0].all()):
                raise ValueError(
                    f"run {k} has a head, which reads the first token, and rows padded on the left: pad them on the "
                    "right"
                )

    def _check_attached(self) -> None:
        if (there := TAKEN.get(self.sites.base)) is None or there() is not self:
            raise ValueError("these runs are detached: attach their methods again and load their tensors (state.py)")

    def _stack(self, batches: Sequence[Batch | None], to_the_right: bool = False) -> dict[str, Tensor]:
        self._check_attached()
        if len(batches) != len(self.runs):
            raise ValueError(f"{len(batches)} batches for {len(self.runs)} runs: give one per run, None to skip one")
        prefixes = [self.prefix(k) for k in range(len(self.runs))]
        self.stacked = stack(self.sites, batches, self.owners(EMBEDDINGS), prefixes, to_the_right)
        self.dropout_calls.clear()
        for stream, padding in zip(self.streams, self.stacked.padding, strict=True):
            stream.padding = padding
        inputs = dict(self.stacked.inputs)
        if self.sites.architecture.positions == "hook":
            del inputs["position_ids"]  # hooks.py puts them where they belong
        return inputs
