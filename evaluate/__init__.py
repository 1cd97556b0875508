"""clipq-eval: engine to cells to metrics to record to report."""

if not __name__.startswith("clipq."):
    raise ImportError("this folder installs as clipq.evaluate: pip install . and import that, not the folder")
