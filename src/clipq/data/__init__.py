"""Data views and where they come from; shared by attacks (export) and evaluation."""
