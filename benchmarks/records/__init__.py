"""What stays of a run: its record, how it is written and read, its state, and who is making it. No torch, no pandas."""
