"""What the numbers say: better, same, worse or unknown, compared and gated; imports results, axes and metrics."""
