"""Latency, memory and kernels of engines; imports cells, results and metrics."""
