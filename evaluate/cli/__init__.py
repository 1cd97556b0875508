"""The command ``clipq-eval``, a file for each group of commands; imports every folder, and none imports it."""

from clipq.evaluate.cli.main import main

__all__ = ["main"]
