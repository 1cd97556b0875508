"""Where cells lie: a folder, or an object store by its URL (``s3://bucket/prefix``, ``gs://``), through fsspec."""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipq.errors import ResultsError
from clipq.files import WRITING, write_atomic
from clipq.given import MEMORY


@dataclass(frozen=True)
class Storage:
    """Named bytes below a root, as ``given.as_store`` spells it.

    A write happens whole or not at all, in a folder by renaming, in a store by nature. Raises ResultsError where the
    store cannot be reached.
    """

    root: str

    @property
    def is_remote(self) -> bool:
        """Whether the root is a URL and not a folder of this machine."""
        return re.match(r"[\w+.-]+://", self.root) is not None

    @property
    def is_shared(self) -> bool:
        """Whether another process sees what this one writes."""
        return not self.root.startswith(f"{MEMORY}://")

    def require_writable(self) -> None:
        """Raise ResultsError where nothing can be kept; leaves nothing behind."""
        name, data = f"{WRITING}{secrets.token_hex(8)}", secrets.token_bytes(16)
        made: list[Path] = []
        try:
            if not self.is_remote:
                made = [at for at in (Path(self.root), *Path(self.root).parents) if not at.exists()]
            self.write(name, data)
            if self.read(name) != data or name not in self.names():
                raise ResultsError(f"{self.root}: does not give back what is written there; keep cells elsewhere")
        except OSError as error:
            raise ResultsError(f"{self.root}: cells cannot be kept there ({error.strerror or error})") from error
        finally:
            # Some stores take objects and never give them up.
            with contextlib.suppress(OSError, ResultsError):
                self.remove(name)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

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
        if not self.is_remote:
            write_atomic(self.path(name), data)
            return
        try:
            self._ask("pipe_file", self._key(name), data)
        except FileNotFoundError as error:
            raise ResultsError(f"{self.root}: cells cannot be kept there ({error})") from error

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
        try:
            paths = self._ask("find", key)
        except FileNotFoundError:
            return {}
        for path in paths:
            folder, _, name = str(path).removeprefix(f"{key}/").rpartition("/")
            found.setdefault(folder, set()).add(name)
        return found

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The store, and what it calls the root."""
        import fsspec

        try:
            files, place = fsspec.core.url_to_fs(self.root)
        except Exception as error:  # every store has exceptions of its own
            raise ResultsError(f"{self.root}: cannot be opened ({type(error).__name__}: {error})") from error
        return files, place.rstrip("/")

    @property
    def _files(self) -> Any:
        return self._opened[0]

    def _key(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._files, method)(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has exceptions of its own
            raise ResultsError(f"{self.root}: {type(error).__name__}: {error}") from error
