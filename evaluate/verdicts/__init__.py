"""What the numbers say: better, same, worse or unknown; by axis, compared, gated."""
