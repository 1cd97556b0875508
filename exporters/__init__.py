"""clipq-export: checkpoint to ONNX to quantized bundle to built engine."""

if not __name__.startswith("clipq."):
    raise ImportError("this folder installs as clipq.exporters: pip install . and import that, not the folder")
