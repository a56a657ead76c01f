"""Parameter-efficient methods as small modules attached at named sites of a frozen backbone.

With `model` from transformers (what it may be: architectures.py), `batch` its `input_ids` and `attention_mask`, and a
loss of yours:

```python
import torch

from peft_methods.attach import attach
from peft_methods.lora import Lora
from peft_methods.state import load_trained, save_trained

lora = Lora(rank=8, alpha=16, dropout=0.0, targets=["query", "value"], init_A="kaiming_uniform")
attached = attach(model, [lora])  # freezes the model; several methods are several runs that share its passes
optimizer = torch.optim.AdamW(attached.run(0).trained().values(), lr=5e-4)
(output,) = attached.train()([batch])  # one batch and one output per run
loss(output).backward()
optimizer.step()
save_trained(attached, "lora.safetensors")  # the trained tensors and nothing else
attached.detach()  # the model is as it was
served = attach(model, [lora])
load_trained(served, "lora.safetensors")
served.merge()  # the update lies in the model's weights now
```

architectures       where modules attach, per architecture: the only names of modules inside transformers
site_list, sites    every site of one backbone; their kinds, how methods choose among them, the frozen maps behind them
protocols           what a method provides, and all that a method or a module may define beside it
attach              put K runs' methods on one backbone, with the steps that undo it
run_modules         what one run trains: its modules by site, its head
attached            forward and generation of a pack of runs
hooks               send each run's rows through its own modules
attention           prefixes before keys and values
inputs              batches stacked to a pack; prompts in the model's input
dropout             counter-based dropout, one stream per run
heads               the task layer on top, always trained
bottleneck          Houlsby, Pfeiffer, AdapterDrop, parallel adapters, Adapter^L
lora                LoRA
ia3                 (IA)^3
bitfit              BitFit
layer_norm          LayerNorm tuning, and norms with trained offsets
prefix              prefix and infix tuning
prompt              prompt tuning, embedding-only prefixes
reparameterization  the MLP behind prefixes and prompts
composition         several methods as one (MAM adapters)
baselines           full fine-tuning, the last layers, the head alone
merge               low-rank updates added to the frozen weights, and taken back
counting            parameters as the papers count them
state               trained tensors saved and loaded
interchange         to and from the folders of peft and of adapters (docs/interchange.md)
"""
