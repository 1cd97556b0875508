"""Sweeps: a grid of checkpoints, recipes, runtimes and views, filled cell by cell here or on a Ray cluster."""
