"""How the shipped micro backbones are made: builders, objectives, the loop."""
