"""From the name of a published checkpoint to a frozen model and its tokenizer."""
