"""One page of results/tables a file."""
