"""``python -m clipq.evaluate.cli``."""

from clipq.evaluate.cli.main import main

main(prog_name="clipq-eval")
