"""Latency, memory and kernels of engines."""
