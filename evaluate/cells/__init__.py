"""Engines to stored numbers: embeddings and attacks, kept under digests; imports suites and metrics."""
