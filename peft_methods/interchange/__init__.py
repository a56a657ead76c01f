"""Runs to and from the folders of Hugging Face `peft` and of AdapterHub's `adapters` (docs/interchange.md).

peft, projections         LoRA, (IA)^3, prompt and prefix tuning; what lies at projections
adapters, bottlenecks     Houlsby, Pfeiffer, parallel, Adapter^L; which of the library's configurations is which
folders                   what both share
"""

from peft_methods.interchange.adapters import export_adapters, import_adapters, read_adapters
from peft_methods.interchange.folders import Imported
from peft_methods.interchange.peft import export_peft, import_peft, read_peft

__all__ = [
    "Imported",
    "export_adapters",
    "export_peft",
    "import_adapters",
    "import_peft",
    "read_adapters",
    "read_peft",
]
