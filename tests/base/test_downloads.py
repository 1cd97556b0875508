"""Servers that misbehave, over real HTTP: nothing is kept that is not whole, checked and within limits."""

from __future__ import annotations

import contextlib
import http.server
import os
import resource
import signal
import threading
import time

import pytest

from clipq.data import downloads
from clipq.data.downloads import Mirror
from clipq.errors import DataError
from clipq.text_files import as_text

BODY = bytes(range(256)) * 8192


class Server(http.server.BaseHTTPRequestHandler):
    """Answers a path by the function of that name in ``answers``; keeps what was asked."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, object]
    asked: list[tuple[str, str | None]]
    gone: threading.Event

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        self.close_connection = True
        self.answers[self.path.split("?")[0]](self)

    def head(self, status=200, length=2**21, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    Server.answers, Server.asked, Server.gone = {}, [], threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.handle_error = lambda *_: None
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        Server.gone.set()
        running.shutdown()


def content(path, where):
    return path.read_bytes()


def text(path, where):
    return as_text(path.read_bytes(), where, DataError)


def kept(folder):
    return [path for path in folder.rglob("*") if path.is_file() or path.name.startswith(".")]


def get(server, folder, answer, name="0.tar", parse=content):
    Server.answers[f"/set/{name}"] = answer
    return Mirror.of(f"{server}/set", folder).read(name, parse)


def refused(server, folder, answer, name="0.tar", parse=content):
    with pytest.raises(DataError) as raised:
        get(server, folder, answer, name, parse)
    assert not kept(folder) and "\n" not in str(raised.value) and f"/set/{name}: " in str(raised.value)
    return str(raised.value)


def drops(after, **headers):
    def answer(handler):
        handler.head(**headers)
        handler.wfile.write(BODY[:after])

    return answer


def resumes(handler):
    """Drops the body after a million bytes, and goes on where it is asked to."""
    start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
    if start:
        assert handler.headers["If-Range"] == '"v1"'
        handler.head(206, len(BODY) - start, ETag='"v1"', Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
    else:
        handler.head(ETag='"v1"')
    handler.wfile.write(BODY[start : start + 2**20 - 7])


def test_a_dropped_body_goes_on_where_it_ended(tmp_path, server):
    assert get(server, tmp_path, resumes) == BODY
    assert Server.asked[1:] == [("/set/0.tar", f"bytes={2**20 - 7}-"), ("/set/0.tar", f"bytes={2 * (2**20 - 7)}-")]
    assert [path.read_bytes() for path in kept(tmp_path)] == [BODY]


def test_a_dropped_body_is_fetched_again_where_nothing_tells_its_version(tmp_path, server):
    def answer(handler):
        drops(5000 if len(Server.asked) < 3 else len(BODY))(handler)

    assert get(server, tmp_path, answer) == BODY and Server.asked == [("/set/0.tar", None)] * 3


def test_parts_smaller_than_what_was_asked_for(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloads, "_PROGRESS", 1000)

    def answer(handler):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        end = min(start + 300_000, len(BODY))
        if start:
            handler.head(206, end - start, ETag='"v1"', Content_Range=f"bytes {start}-{end - 1}/{len(BODY)}")
        else:
            handler.head(ETag='"v1"')
        handler.wfile.write(BODY[start:end])

    assert get(server, tmp_path, answer) == BODY


def test_a_full_disk_is_no_server_s_fault(tmp_path, server):
    with pytest.raises(OSError, match=r"File too large|No space left"), limited_files(1000):
        get(server, tmp_path, drops(len(BODY)))
    assert len(Server.asked) == 1 and not kept(tmp_path)


@contextlib.contextmanager
def limited_files(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_another_version_is_not_joined_to_the_first(tmp_path, server):
    def answer(handler):
        if handler.headers.get("Range"):
            handler.head(200, 5, ETag='"v2"')
            handler.wfile.write(b"other")
        else:
            drops(5000, ETag='"v1"')(handler)

    assert get(server, tmp_path, answer) == b"other"


def test_a_body_that_always_drops(tmp_path, server):
    assert "could not be fetched in 4 attempts (5000 of 2097152 bytes came)" in refused(server, tmp_path, drops(5000))
    assert len(Server.asked) == 4


def test_many_drops_end_where_nothing_moves(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloads, "_PROGRESS", 1000)

    def answer(handler):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        part = BODY[start : start + 100_000] if len(Server.asked) < 15 else b""
        handler.head(
            206 if start else 200,
            len(BODY) - start,
            ETag='"v1"',
            Content_Range=f"bytes {start}-{start + 99_999}/{len(BODY)}",
        )
        handler.wfile.write(part)

    assert "1400000 of 2097152" in refused(server, tmp_path, answer) and len(Server.asked) == 17


@pytest.mark.parametrize("part", ["status", "headers", "body", "nothing", "chunks"])
def test_a_byte_now_and_then(tmp_path, server, monkeypatch, part):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    first = {
        "status": b"", "nothing": b"", "headers": b"HTTP/1.1 200 OK\r\nX: ",
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    }[part]  # fmt: skip

    def answer(handler):
        handler.wfile.write(first)
        while not Server.gone.wait(0.05):
            if part != "nothing":
                handler.wfile.write(b"0")

    assert "bytes came in 0.2 seconds" in refused(server, tmp_path, answer) and len(Server.asked) == 4


def endless(handler):
    handler.head(length=None, Transfer_Encoding="chunked")
    while not Server.gone.is_set():
        handler.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")


def test_a_body_without_end(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloads, "MOST_BYTES", 2**20)
    assert "sends more than it announced, or may have" in refused(server, tmp_path, endless)
    assert len(Server.asked) == 1


def test_bodies_of_announced_sizes(tmp_path, server):
    large = lambda handler: handler.head(length=10**12)  # noqa: E731
    assert "has 1000000000000 bytes, more than the 68719476736" in refused(server, tmp_path, large)
    larger_text = lambda handler: handler.head(length=10**8)  # noqa: E731
    assert "more than the 67108864" in refused(server, tmp_path, larger_text, "classnames.txt")
    for length in (None, "-5", "1e3", "", "9" * 30):
        said = refused(server, tmp_path, lambda handler, length=length: handler.head(length=length))
        assert "does not say how long it is" in said
    assert len(Server.asked) == 7


def test_a_body_larger_than_the_disk(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert "1000 are free; choose a folder with --fetch" in refused(server, tmp_path, drops(0))


def chunked(handler):
    handler.head(length=None, Transfer_Encoding="chunked")
    handler.wfile.write(b"5\r\nhello\r\n")
    if len(Server.asked) > 1:
        handler.wfile.write(b"0\r\n\r\n")


def test_a_chunked_body_has_an_end(tmp_path, server):
    assert get(server, tmp_path, chunked) == b"hello" and len(Server.asked) == 2


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", "application/xhtml+xml", "TEXT/HTML"])
def test_a_portal_s_page(tmp_path, server, kind):
    said = refused(server, tmp_path, lambda handler: handler.head(Content_Type=kind), "classnames.txt")
    assert "the server answers with a web page" in said and len(Server.asked) == 1


def test_what_cannot_be_used_is_not_kept(tmp_path, server):
    def answer(handler):
        handler.head(length=2, Content_Type="text/plain")
        handler.wfile.write(b"\xff\xfe")

    assert "line 1 is not UTF-8" in refused(server, tmp_path, answer, "classnames.txt", text)
    (path,) = [Mirror.of(f"{server}/set", tmp_path).folder / "classnames.txt"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"not UTF-8.*\(delete .*classnames\.txt, and it is fetched again\)"):
        get(server, tmp_path, answer, "classnames.txt", text)


@pytest.mark.parametrize(
    ("status", "said", "asked"),
    [
        (401, "refuses it (401", 1), (403, "refuses it (403", 1), (410, "refuses it (410", 1), (418, "refuses it (418", 1),
        (500, "4 attempts (500", 4), (503, "4 attempts (503", 4), (429, "4 attempts (429", 4), (204, "gives no file (204", 1),
        (206, "gives no file (206", 1), (304, "refuses it (304", 1),
    ],
)  # fmt: skip
def test_status(tmp_path, server, status, said, asked):
    assert said in refused(server, tmp_path, lambda handler: handler.head(status, 0)) and len(Server.asked) == asked


def test_404_is_no_error_and_nothing_is_kept(tmp_path, server):
    assert get(server, tmp_path, lambda handler: handler.head(404, 0)) is None and not kept(tmp_path)


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,hello", "gopher://x/y", "FILE:/etc/passwd"]
)
def test_redirects_to_other_schemes(tmp_path, server, to):
    said = refused(server, tmp_path, lambda handler: handler.head(302, 0, Location=to))
    assert ("is not followed" in said or "refuses it (302" in said) and len(Server.asked) == 1


def test_redirects(tmp_path, server):
    Server.answers["/there"] = drops(len(BODY))
    assert get(server, tmp_path, lambda handler: handler.head(302, 0, Location="/there")) == BODY
    said = refused(server, tmp_path / "x", lambda handler: handler.head(302, 0, Location="/set/0.tar"))
    assert "refuses it (302" in said


def test_from_https_to_http_is_not_followed():
    request = downloads.urllib.request.Request("https://somewhere/set/0.tar")
    with pytest.raises(DataError, match="sends on to http://elsewhere/, which is not followed"):
        downloads._Redirects().redirect_request(request, None, 302, "Found", {}, "http://elsewhere/")


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0\0\0\0", b"HTTP/9.9 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n", b"SSH-2.0-x\r\n"],
)
def test_what_is_no_http(tmp_path, server, answer):
    assert "could not be fetched in 4 attempts" in refused(
        server, tmp_path, lambda handler: handler.wfile.write(answer)
    )


def test_encoded_bodies_are_refused(tmp_path, server):
    assert "encoded (gzip)" in refused(server, tmp_path, lambda handler: handler.head(Content_Encoding="gzip"))


@pytest.mark.parametrize(
    "root", ["file:///etc", "ftp://x/y", "s3://bucket/set", "http://", "http://[1/x", "data://x", "memory://x"]
)
def test_other_addresses(tmp_path, root):
    with pytest.raises(DataError, match="is no "):
        Mirror.of(root, tmp_path)


@pytest.mark.parametrize(
    "root",
    [
        "http://127.0.0.1:x/set",
        "http://127.0.0.1:99999/set",
        "http://a b/set",
        "http://é\u0000/set",
        "http://" + "a" * 300,
    ],
)
def test_addresses_that_nobody_has(tmp_path, server, root):
    with pytest.raises(DataError):
        Mirror.of(root, tmp_path).read("0.tar", content)
    assert not kept(tmp_path)


def test_a_password_is_neither_sent_nor_said(tmp_path):
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9: comes with a user name") as refused:
        Mirror.of("http://me:secret@127.0.0.1:9/set", tmp_path)
    assert "secret" not in str(refused.value)


def test_names_stay_below_the_address_and_its_query(tmp_path, server):
    Server.answers["/a%20b%C3%A9/te%20st%3F/0.tar"] = drops(len(BODY))
    assert Mirror.of(f"{server}/a bé?key=1", tmp_path).read("te st?/0.tar", content) == BODY
    assert Server.asked == [("/a%20b%C3%A9/te%20st%3F/0.tar?key=1", None)]


def test_remainders_of_killed_runs_are_removed(tmp_path, server):
    folder = Mirror.of(f"{server}/set", tmp_path).folder
    another = Mirror.of(f"{server}/other", tmp_path).folder
    for left, age in (
        (folder / ".clipq-fetching-1", 8),
        (folder / ".clipq-fetching-2", 1),
        (another / ".clipq-fetching-3", 8),
    ):
        left.mkdir(parents=True)
        (left / "body").write_bytes(b"1")
        os.utime(left, (time.time() - age * 24 * 3600,) * 2)
    get(server, tmp_path, drops(len(BODY)))
    assert sorted(path.name for path in folder.iterdir()) == [".clipq-fetching-2", "0.tar"]
    assert not list(another.iterdir())


def test_the_hub_s_files_are_fetched_by_its_library(tmp_path, monkeypatch):
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    asked = []

    def hf_hub_download(repository, name, *, repo_type, revision, local_dir):
        asked.append((repository, name, repo_type, revision))
        if name == "templates.txt":
            raise EntryNotFoundError("404")
        if name == "gone.txt":
            raise LocalEntryNotFoundError("no\nnetwork")
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(b"hello")
        return str(local_dir / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    mirror = Mirror.of("https://huggingface.co/datasets/clip-benchmark/wds_cars/tree/main", tmp_path)
    assert mirror.read("test/0.tar", content) == mirror.read("test/0.tar", content) == b"hello"
    assert mirror.read("templates.txt", content) is None
    with pytest.raises(DataError, match=r"gone\.txt: the hub does not give it \(no\)"):
        mirror.read("gone.txt", content)
    with pytest.raises(DataError, match="never"):
        mirror.read("classnames.txt", lambda path, where: (_ for _ in ()).throw(DataError("never")))
    names = ["test/0.tar", "templates.txt", "gone.txt", "classnames.txt"]
    assert asked == [("clip-benchmark/wds_cars", name, "dataset", "main") for name in names]
    assert [path.name for path in kept(tmp_path)] == ["0.tar"]
