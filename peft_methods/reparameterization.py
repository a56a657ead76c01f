"""The trained matrix behind a prefix, an infix or an embedding prompt, with or without Li & Liang's MLP.

    rows = W_out tanh(W_in E + b_in) + b_out,   E (P x H) trained, one MLP for all positions   (section 4.3, footnote 4)

The MLP is there for training only: what is stored, and counted as stored, are the rows it gives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reparameterized(nn.Module):
    """(length, total) rows as a function of a trained embedding.

    Starts, as in the released code: the embedding at N(0, 1), the maps at PyTorch's default for nn.Linear.
    """

    def __init__(self, length: int, width: int, hidden: int, total: int):
        super().__init__()
        if hidden < 1:
            raise ValueError(f"mlp_hidden={hidden}: expected at least 1, or null for none; change method.mlp_hidden")
        self.embedding = nn.Parameter(torch.randn(length, width))
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, total)

    def columns(self, start: int, stop: int) -> Tensor:
        """(length, stop - start): these columns of the rows; the rest is not computed."""
        inside = torch.tanh(self.inner(self.embedding))
        return F.linear(inside, self.outer.weight[start:stop], self.outer.bias[start:stop])

    def fit(self, rows: Tensor, steps: int = 500, learning_rate: float = 1e-4) -> None:
        """Fit the maps, not the embedding, to `rows` (length, total) by Adam on the mean squared error.

        Steps and learning rate: the released code's start from words (gpt2/train_control.py, lowdata_init_train3).
        """
        optimizer = torch.optim.Adam([*self.inner.parameters(), *self.outer.parameters()], lr=learning_rate)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad()
                F.mse_loss(self.columns(0, rows.shape[1]), rows).backward()
                optimizer.step()
        self.zero_grad(set_to_none=True)


def check_length(length: int) -> None:
    """At least one row."""
    if length < 1:
        raise ValueError(f"length={length}: expected at least 1; change method.length")
