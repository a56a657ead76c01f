"""This process makes these runs and no other does: a claim on all of them, held while the block runs."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

from ..records import leases
from .prepare import Prepared


@dataclasses.dataclass(frozen=True)
class Lease:
    """held: None where there is nothing to hold, or another of several data-parallel processes holds it for all.
    busy: which process makes one of the runs instead; then nothing may be made."""

    held: leases.Held | None = None
    busy: str | None = None

    def check(self) -> None:
        """Before anything is written for a run. Raises ClaimLost."""
        if self.held is not None:
            self.held.check()


NO_LEASE = Lease()  # nothing is made that another process could make, too


@contextlib.contextmanager
def leased(runs: Sequence[Prepared]) -> Iterator[Lease]:
    """The runs are this process's own inside the block; of data-parallel ones, the first says so for all."""
    if not runs or int(os.environ.get("RANK", "0")) > 0:
        yield NO_LEASE
        return
    try:
        held = leases.claim_runs(runs[0].cfg.results_dir, [p.key for p in runs])
    except leases.Busy as busy:
        yield Lease(busy=str(busy))
        return
    try:
        yield Lease(held)
    finally:
        held.release()
