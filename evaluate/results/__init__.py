"""What a run leaves in its folder: records, estimates, pairing, and how they are read again."""
