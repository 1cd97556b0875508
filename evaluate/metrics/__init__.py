"""Metrics as pure functions of predictions and sample weights.

Every function takes ``Predictions`` and a weight matrix ``(resamples, samples)`` and returns one value per row. A row
of ones gives the metric itself; a row of bootstrap counts gives it on that resample. So a metric and its interval come
from one definition, and the reference and a candidate can be resampled in step.
"""
