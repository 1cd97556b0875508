"""Bundles through the cells' storage, for nodes that do not see the folder they were made in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clipq.bundle import MANIFEST, Bundle, open_bundle
from clipq.errors import BundleError
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.cells.subjects import Subject
from clipq.files import directory_in_making

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
    if not (target / MANIFEST).is_file():
        with directory_in_making(target) as making:
            for name in [*(entry.file for entry in bundle.manifest.files()), MANIFEST]:
                (making / name).parent.mkdir(parents=True, exist_ok=True)
                stored = f"bundles/{bundle.digest}/{name}"
                try:
                    (making / name).write_bytes(storage.read(stored))
                except FileNotFoundError as error:
                    raise BundleError(f"{storage.url(stored)} is not in the store") from error
    return replace(subject, bundle=open_bundle(target))
