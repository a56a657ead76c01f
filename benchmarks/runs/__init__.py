"""One run, or a pack of K on one backbone, from configuration to record."""
