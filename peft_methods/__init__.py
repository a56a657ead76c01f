"""Parameter-efficient methods as small modules attached at named sites of a frozen backbone.

sites      where modules attach, per architecture
attach     put K runs' modules on one backbone, send each run's slice of the batch through its own
dropout    counter-based dropout, one stream per run
heads      the task layer on top, always trained
bottleneck, lora, bitfit, baselines   the methods, one file each
counting, state                       parameters counted, trained tensors saved and loaded
"""
