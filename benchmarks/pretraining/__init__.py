"""How the shipped micro backbones are made: settings, builders, objectives, the loop."""
