"""The loop for K >= 1 runs, what it optimizes with, and how it starts again."""
