"""Put on a Ray node's PYTHONPATH: its first worker that is about to finish a write kills itself, as the kernel would."""

import os
import pathlib
import signal

_replace = pathlib.Path.replace


def replace(self, target):
    marker = os.environ.get("KILL_ONCE")
    if marker and "/cells/" in str(target) and str(target).endswith(".safetensors"):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return _replace(self, target)


pathlib.Path.replace = replace
