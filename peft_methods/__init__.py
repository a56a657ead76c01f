"""Parameter-efficient methods as small modules attached at named sites of a frozen backbone.

architectures, sites                  where modules attach, per architecture; kinds of sites
attach, attached, hooks               put K runs' modules on one backbone, send each run's rows through its own
attention, inputs                     prefixes before keys and values; prompts in the model's input
dropout                               counter-based dropout, one stream per run
bottleneck, lora, ia3, bitfit, prefix, prompt, baselines, composition    the methods
reparameterization, heads             the MLP behind prefixes and prompts; the task layer on top, always trained
counting, state                       parameters counted, trained tensors saved and loaded
interchange, interchange_*            to and from the folders of peft and of adapters (docs/interchange.md)
"""
