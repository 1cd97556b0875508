"""What others published of zero-shot checkpoints, as data."""
