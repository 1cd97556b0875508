"""Engines run a bundle's towers and measure how they run; they know no CLIP task and no metric."""

if not __name__.startswith("clipq."):
    raise ImportError("this folder installs as clipq.engines: pip install . and import that, not the folder")
