"""Bundles through the cells' storage, for nodes that do not see the folder they were made in."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from clipq.bundle import MANIFEST, Bundle, open_bundle
from clipq.errors import BundleError
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.cells.subjects import Subject
from clipq.files import FETCHING, remove_stale

FETCHED = Path("~/.cache/clipq/bundles")


def ship(bundle: Bundle, storage: Storage) -> None:
    """Put a bundle into an object store, unless it is there; the manifest last, so that what has one is whole."""
    folder = f"bundles/{bundle.digest}"
    if not storage.is_remote or MANIFEST in storage.names(folder):
        return
    for name in [*(entry.file for entry in bundle.manifest.files()), MANIFEST]:
        storage.write(f"{folder}/{name}", (bundle.path / name).read_bytes())


def fetched(subject: Subject, storage: Storage) -> Subject:
    """The subject with its bundle where this machine has it: where it was made, else fetched from the store and kept.

    Raises BundleError where it is in neither place.
    """
    bundle = subject.bundle
    if (bundle.path / MANIFEST).is_file() and Bundle(bundle.path, bundle.manifest).digest == bundle.digest:
        return subject
    if not storage.is_remote:
        raise BundleError(
            f"this node does not see {bundle.path}; put RESULTS and the bundles where all nodes see them, "
            "or cells into an object store (cells = 's3://...' in the grid)"
        )
    # The bundle's name is the folder's, so each digest gets a folder of its own around it.
    target = FETCHED.expanduser() / bundle.digest / bundle.name
    try:
        if not (target / MANIFEST).is_file():
            _fetch(bundle, storage, target)
    except OSError as error:
        raise BundleError(f"{target}: engines cannot be kept there ({error.strerror or error})") from error
    return replace(subject, bundle=_opened(target, bundle.digest))


@lru_cache(maxsize=64)
def _opened(target: Path, digest: str) -> Bundle:
    """A bundle that was fetched, checked once by each process and not for each cell."""
    try:
        found = open_bundle(target)
    except BundleError as error:
        raise BundleError(f"{error} (delete {target}: it is fetched again)") from error
    if found.digest != digest:
        raise BundleError(f"{target} is another bundle than its folder says; delete it, it is fetched again")
    return found


def _fetch(bundle: Bundle, storage: Storage, target: Path) -> None:
    """Fetch a bundle beside its place, check it, and rename it there; the first of several processes wins.

    A bundle that is there already stays, for another process may be reading it: by its digest it is the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of all bundles, for this one is not fetched again.
    remove_stale(target.parent.parent, f"*/{FETCHING}*")
    with TemporaryDirectory(dir=target.parent, prefix=FETCHING) as folder:
        making = Path(folder) / target.name
        for name in [*(entry.file for entry in bundle.manifest.files()), MANIFEST]:
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            stored = f"bundles/{bundle.digest}/{name}"
            try:
                (making / name).write_bytes(storage.read(stored))
            except FileNotFoundError as error:
                raise BundleError(f"{storage.url(stored)} is not in the store; start the sweep again") from error
        try:
            whole = open_bundle(making).digest == bundle.digest
        except BundleError:
            whole = False
        if not whole:
            where = storage.url(f"bundles/{bundle.digest}")
            raise BundleError(f"{where} is damaged; delete it from the store and start the sweep again")
        try:
            making.rename(target)
        except OSError:
            if not (target / MANIFEST).is_file():
                raise
