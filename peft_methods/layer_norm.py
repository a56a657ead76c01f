"""LayerNorm tuning. Houlsby et al. 2019, arXiv:1902.00751, section 3.4: the gain and bias of every LayerNorm train, and
the head.

    LN: y <- (gamma + dgamma) * norm(z) + beta + dbeta

Site     every LayerNorm, the embeddings' included (as the released code does)
Trained  2·H a LayerNorm (T5's have no bias: H), as offsets to the frozen ones
Added    none
"""

from dataclasses import dataclass

from torch import nn

from peft_methods.bitfit import norm_offset
from peft_methods.sites import Site, Sites


@dataclass(frozen=True)
class LayerNorm:
    """It has no settings."""

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {site: norm_offset(sites, site) for site in sites.norms()}
