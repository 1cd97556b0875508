"""clipq: what quantization changed in a CLIP engine, measured on the engine that ships."""

__version__ = "0.1.0"
