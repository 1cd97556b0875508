"""Files of a web server, kept in a folder: whole and checked, within limits of size and time, or not at all.

The Hugging Face hub's are fetched by its own library, which takes tokens, mirrors and interrupted downloads; what
others serve, by Python's.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from tempfile import TemporaryDirectory
from typing import IO, Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote, urlsplit

from clipq.errors import DataError
from clipq.files import FETCHING, remove_stale, sha256_bytes
from clipq.text_files import MOST_BYTES

ATTEMPTS = 4
# Seconds. In as many a server must answer, and then send SLOWEST bytes in each of them.
TIMEOUT = 10.0
SLOWEST = 10_000
MOST_SHARD = 64 * 2**30
# Bytes that make an attempt worth while: the next ones are counted from there.
_PROGRESS = 2**20

Content = TypeVar("Content")


@dataclass(frozen=True)
class Mirror:
    """Files below an address, kept in a folder."""

    root: str
    folder: Path

    @classmethod
    def of(cls, root: str, cache: Path) -> Mirror:
        """The mirror of an address in a cache; raises DataError for one that is not http or https."""
        # CLIP_benchmark's users write the hub's page of a folder; its files lie under /resolve/.
        root = root.rstrip("/").replace("/tree/main", "/resolve/main")
        try:
            parts = urlsplit(root)
            # Numbers beyond 65535 are seen when they are asked for.
            _ = parts.port
        except ValueError as error:
            raise DataError(f"{root}: is no address ({error})") from error
        if "@" in parts.netloc:
            # Unsaid: it would stand in logs and records.
            raise DataError(
                f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}: comes with a user name, which is not sent; "
                "fetch it otherwise, and give the folder"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(f"{root}: is no http:// or https:// address; other ones are not fetched")
        return cls(root, cache / "wds" / sha256_bytes(root.encode())[:16])

    def read(self, name: str, parse: Callable[[Path, object], Content]) -> Content | None:
        """What ``parse`` makes of a file, which is kept only if it makes something; None where the server has none."""
        path = self.folder / name
        if not path.is_file() and not self._fetch(name, path, parse):
            return None
        try:
            return parse(path, path)
        except DataError as error:
            raise DataError(f"{error} (delete {path}, and it is fetched again)") from error

    def _fetch(self, name: str, path: Path, parse: Callable[[Path, object], object]) -> bool:
        url = _below(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of all addresses, for this one may not be fetched again.
        remove_stale(self.folder.parent, f"**/{FETCHING}*")
        # A folder of each one's own, for several workers may fetch the same.
        with TemporaryDirectory(prefix=FETCHING, dir=path.parent, ignore_cleanup_errors=True) as making:
            most = MOST_SHARD if name.endswith(".tar") else MOST_BYTES
            made = _from_hub(url, Path(making)) if _HUB.match(url) else _download(url, Path(making), most)
            if made is None:
                return False
            parse(made, url)
            made.replace(path)
        return True


# What another attempt does not change, or not always: an answer with a status, and what is no address.
_FINAL = (urllib.error.HTTPError, http.client.InvalidURL)


class _Interrupted(Exception):
    """An attempt that may do better the next time."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, and from https to no http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request to follow with."""
        if urlsplit(newurl).scheme not in {"http": ("http", "https"), "https": ("https",)}[req.type]:
            raise DataError(f"{req.full_url}: the server sends on to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, folder: Path, most: int) -> Path | None:
    """Fetch a URL in attempts with growing pauses, each going on where the one before ended; None for 404."""
    reason, attempt, furthest = "", 0, 0
    path = folder / "body"
    with path.open("wb") as file:
        body = _Body(url, file, most)
        while attempt < ATTEMPTS:
            if attempt:
                time.sleep(0.5 * 2**attempt)
            attempt += 1
            try:
                body.fetch()
                return path
            except _Interrupted as error:
                reason = str(error)
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code < 500 and error.code not in (408, 425, 429):
                    hint = "; object stores say so of what is not there, too" if error.code == 403 else ""
                    raise DataError(
                        f"{url}: the server refuses it ({error.code} {error.reason[:200]}){hint}"
                    ) from error
                reason = f"{error.code} {error.reason[:200]}"
            except (ValueError, http.client.InvalidURL) as error:
                raise DataError(f"{url}: is no address ({error})") from error
            if file.tell() >= furthest + _PROGRESS and body.goes_on:
                attempt, furthest = 1, file.tell()
    raise DataError(f"{url}: could not be fetched in {ATTEMPTS} attempts ({reason}); check the address and the network")


class _Body:
    """The body of a URL on its way into a file."""

    def __init__(self, url: str, file: BinaryIO, most: int):
        self._url, self._file, self._most = url, file, most
        # What tells this content from another one under the same address; without it no attempt goes on.
        self._validator = ""
        self.goes_on = False

    def fetch(self) -> None:
        """One attempt; raises for one that failed, with what came in the file."""
        request = urllib.request.Request(self._url)
        start = self._file.tell() if self._validator else 0
        if start:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", self._validator)
        with contextlib.closing(_answer(request)) as pieces:
            answer = next(pieces)
            total = re.fullmatch(rf"bytes {start}-[0-9]+/([0-9]{{1,18}})", answer.headers.get("Content-Range", ""))
            self.goes_on = answer.status == 206 and start > 0 and total is not None
            self._file.seek(start if self.goes_on else 0)
            self._file.truncate()
            length = int(total[1]) if total is not None and self.goes_on else self._announced(answer)
            self._check_room(length)
            for piece in pieces:
                self._file.write(piece)
                if self._file.tell() > (self._most if length is not None else MOST_BYTES):
                    raise DataError(f"{self._url}: sends more than it announced, or may have; check the address")
        if length is not None and self._file.tell() != length:
            raise _Interrupted(f"{self._file.tell()} of {length} bytes came")

    def _announced(self, answer: Any) -> int | None:
        """How many bytes a whole body has, None for one that marks its end itself; raises for what is no file."""
        headers = answer.headers
        if answer.status != 200:
            raise DataError(
                f"{self._url}: the server gives no file ({answer.status} {answer.reason}); check the address"
            )
        if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise DataError(
                f"{self._url}: the server answers with a web page, as networks do that want a login; see the address "
                "in a browser"
            )
        if headers.get("Content-Encoding", "identity") != "identity":
            raise DataError(f"{self._url}: the server sends it encoded ({headers['Content-Encoding']}), unasked")
        etag = headers.get("ETag", "")
        self._validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
        if "chunked" in headers.get("Transfer-Encoding", "").lower():
            return None
        if not re.fullmatch(r"[0-9]{1,18}", headers.get("Content-Length", "")):
            raise DataError(
                f"{self._url}: the server does not say how long it is, so that a cut could not be told; "
                "fetch it otherwise, and give the folder"
            )
        return int(headers["Content-Length"])

    def _check_room(self, length: int | None) -> None:
        if length is not None and length > self._most:
            raise DataError(f"{self._url}: has {length} bytes, more than the {self._most} that such a file may have")
        free = shutil.disk_usage(Path(self._file.name).parent).free
        if length is not None and length - self._file.tell() > free:
            raise DataError(f"{self._url}: has {length} bytes, {free} are free; choose a folder with --fetch FOLDER")


def _answer(request: urllib.request.Request) -> Generator[Any, None, None]:
    """The answer, then its body piece by piece; raises _Interrupted where a server is too slow.

    A thread waits for the server, for one that sends a byte now and then never lets a socket's timeout end.
    """
    made: Queue[Any] = Queue(maxsize=4)
    gone = threading.Event()

    def hand(item: object) -> None:
        while not gone.is_set():
            with contextlib.suppress(Full):
                return made.put(item, timeout=1)

    def read() -> None:
        try:
            with _opener().open(request, timeout=TIMEOUT) as answer:
                hand(answer)
                while not gone.is_set() and (piece := answer.read1(2**20)):
                    hand(piece)
                hand(None)
        except Exception as error:
            hand(error)

    threading.Thread(target=read, name="fetch", daemon=True).start()
    try:
        until, came = time.monotonic() + TIMEOUT, 0
        while True:
            try:
                item = made.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                item = TimeoutError()
            # The socket's own may end first.
            if isinstance(getattr(item, "reason", item), TimeoutError):
                raise _Interrupted(f"{came} bytes came in {TIMEOUT:g} seconds")
            if item is None:
                return
            # Turned here, where none is a full disk's.
            if isinstance(item, (OSError, http.client.HTTPException)) and not isinstance(item, _FINAL):
                raise _Interrupted(str(getattr(item, "reason", item)) or type(item).__name__) from item
            if isinstance(item, Exception):
                raise item
            came += len(item) if isinstance(item, bytes) else 0
            if came >= SLOWEST * TIMEOUT:
                until, came = time.monotonic() + TIMEOUT, 0
            yield item
    finally:
        gone.set()


def _opener() -> urllib.request.OpenerDirector:
    """What opens http and https, through the machine's proxy, and nothing else: urllib's own reads files, too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


_HUB = re.compile(r"https://(?:huggingface\.co|hf\.co)/(datasets/)?([^/?#]+/[^/?#]+)/resolve/([^/?#]+)/([^?#]+)")


def _from_hub(url: str, folder: Path) -> Path | None:
    """Fetch a file of the hub's by its own library; None for one that it does not have."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    found = _HUB.fullmatch(url)
    assert found is not None
    kind, repository, revision, name = found.groups()
    try:
        fetched = hf_hub_download(
            repository, unquote(name), repo_type="dataset" if kind else "model", revision=unquote(revision),
            local_dir=folder,
        )  # fmt: skip
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"{url}: the hub does not give it ({reason}); check the address, the network and HF_TOKEN"
        ) from error
    return Path(fetched)


def _below(root: str, name: str) -> str:
    """The address of a file below another address, which may end in a query."""
    parts = urlsplit(root)
    path = f"{quote(parts.path.rstrip('/'), safe='/%~!$&()*+,;=:@')}/{quote(name)}"
    return parts._replace(path=path, fragment="").geturl()
