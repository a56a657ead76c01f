"""Documents joined and cut into chunks of one length: no padding, no token left out.

Shapes   B batch, T tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Packing:
    """Endless chunks of documents, in an order that the seed fixes; what is left of one epoch begins the next.

    It draws on numpy alone, so that the data does not depend on how the model uses torch's generator.
    """

    def __init__(self, documents: Sequence[Sequence[int]], rng: np.random.Generator) -> None:
        self.documents = [np.asarray(ids, dtype=np.int64) for ids in documents]
        self.rng = rng
        self.waiting = np.empty(0, dtype=np.int64)

    def chunks(self, rows: int, length: int) -> np.ndarray:
        """The next (B, T) tokens; each row goes on where the one before it stopped."""
        while len(self.waiting) < rows * length:
            epoch = [self.documents[index] for index in self.rng.permutation(len(self.documents))]
            self.waiting = np.concatenate([self.waiting, *epoch])
        taken, self.waiting = np.split(self.waiting, [rows * length])
        return taken.reshape(rows, length)
