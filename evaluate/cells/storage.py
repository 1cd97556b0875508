"""Where cells lie: a folder, or an object store by its URL (``s3://bucket/prefix``, ``gs://``), through fsspec."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipq.errors import ResultsError
from clipq.files import write_atomic


@dataclass(frozen=True)
class Storage:
    """Named bytes below a root; a write happens whole or not at all, in a folder by renaming, in a store by nature.

    Raises ResultsError where the store cannot be reached.
    """

    root: str

    @property
    def is_remote(self) -> bool:
        """Whether the root is a URL and not a folder of this machine."""
        return "://" in self.root

    def path(self, name: str) -> Path:
        """The file of a name, where the root is a folder."""
        return Path(self.root) / name

    def url(self, name: str) -> str:
        """What messages call a name."""
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of a name; raises FileNotFoundError where there are none."""
        if not self.is_remote:
            return self.path(name).read_bytes()
        return bytes(self._ask("cat_file", self._key(name)))

    def write(self, name: str, data: bytes) -> None:
        """Store bytes under a name, in place of what was there."""
        if self.is_remote:
            self._ask("pipe_file", self._key(name), data)
        else:
            write_atomic(self.path(name), data)

    def remove(self, name: str) -> None:
        """Remove a name, if it is there."""
        if not self.is_remote:
            self.path(name).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._ask("rm_file", self._key(name))

    def names(self, folder: str = "") -> set[str]:
        """The names in one folder (not below it), by one listing, relative to the folder."""
        if not self.is_remote:
            there = self.path(folder)
            return {path.name for path in there.iterdir()} if there.is_dir() else set()
        key = self._key(folder).rstrip("/")
        # Another machine may have written since a listing was remembered.
        self._files.invalidate_cache(key)
        try:
            found = self._ask("ls", key, detail=False)
        except FileNotFoundError:
            return set()
        return {str(name).rstrip("/").rsplit("/", 1)[-1] for name in found} - {""}

    def tree(self) -> dict[str, set[str]]:
        """The names in every folder of the root, by folder, by one walk."""
        if not self.is_remote:
            root = Path(self.root)
            return {path.name: self.names(path.name) for path in root.iterdir()} if root.is_dir() else {}
        key = self._key("").rstrip("/")
        self._files.invalidate_cache()
        found: dict[str, set[str]] = {}
        for path in self._ask("find", key):
            folder, _, name = str(path).removeprefix(f"{key}/").rpartition("/")
            found.setdefault(folder, set()).add(name)
        return found

    @cached_property
    def _files(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.root)[0]
        except (ImportError, ValueError) as error:
            raise ResultsError(f"{self.root}: cannot be opened ({error})") from error

    def _key(self, name: str) -> str:
        return f"{self._files._strip_protocol(self.root.rstrip('/'))}/{name}"

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._files, method)(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has exceptions of its own
            raise ResultsError(f"{self.root}: {type(error).__name__}: {error}") from error
