"""Engines to stored numbers: embeddings and attacks, kept under digests."""
