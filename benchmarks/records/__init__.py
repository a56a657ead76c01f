"""What stays of a run: its record, how it is written, read, listed, and who is making it. No torch, no pandas."""
