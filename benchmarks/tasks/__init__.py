"""From a task's description to examples: data.py finds and checks the rows, tokenizing.py makes token ids of them."""
