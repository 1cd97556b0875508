"""Compare a wheel's file list with the folders it is made of; exit 1 and name what is missing or too much."""

import subprocess
import sys
import zipfile
from pathlib import Path

FOLDERS = {
    "src/clipq": "clipq",
    "engines": "clipq/engines",
    "exporters": "clipq/exporters",
    "evaluate": "clipq/evaluate",
    "calib_data": "clipq/calib_data",
}


def main(wheel: str) -> int:
    """Files git knows below the folders against files in the wheel."""
    tracked = subprocess.run(
        ["git", "ls-files", *FOLDERS], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    expected = set()
    for path in tracked:
        folder = next(folder for folder in FOLDERS if Path(path).is_relative_to(folder))
        expected.add(f"{FOLDERS[folder]}/{Path(path).relative_to(folder).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    for name in sorted(expected - found):
        print(f"missing from the wheel: {name}")
    for name in sorted(found - expected):
        print(f"in the wheel and in no folder: {name}")
    print(f"{len(found)} files in the wheel, {len(expected)} in the folders")
    return int(found != expected)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
