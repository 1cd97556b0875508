"""What a run leaves in its folder: record, estimates, pairing, and how they are read again; imports metrics alone."""
