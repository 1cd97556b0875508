"""Files of others are text, JSON or TOML, or one line says why not."""

from pathlib import Path

import pytest

from clipq.errors import ClipqError, DataError
from clipq.text_files import parse_toml, read_json, read_text


def refused(read: object, *arguments: object) -> str:
    with pytest.raises(DataError) as caught:
        read(*arguments)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_text_is_utf8_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffgrün\n".encode())
    assert read_text(tmp_path / "a", DataError) == "grün\n"


def test_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("ok\ngrün\n".encode("cp1252"))
    assert "line 2 is not UTF-8 (byte 0xfc)" in refused(read_text, tmp_path / "a", DataError)
    (tmp_path / "b").write_bytes("file,label\n".encode("utf-16"))
    assert "line 1 is not UTF-8" in refused(read_text, tmp_path / "b", DataError)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev", "/proc/self/mem", "/nowhere", "a\0b", "x" * 300])
def test_what_is_no_regular_file_is_refused(name: str) -> None:
    refused(read_text, Path(name), DataError)


def test_a_file_of_unreasonable_size_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as stream:
        stream.truncate(2**40)
    assert "1099511627776 bytes" in refused(read_text, tmp_path / "a", DataError)


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "\udcff".encode("utf-8", "surrogatepass"), "1" * 5000, '["\\ud800"]', '{"\\uD83d": 1}']
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "a").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(read_json, tmp_path / "a", DataError, "make it again").endswith("; make it again")


def test_a_letter_of_two_numbers_is_a_letter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'["\\ud83d\\ude00"]')
    assert read_json(tmp_path / "a", DataError, "make it again") == ["\N{GRINNING FACE}"]


@pytest.mark.parametrize("text", ["a = ", "a = " + "[" * 100_000, "a = 1\na = 2"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    assert refused(parse_toml, text, "suite.toml", DataError).startswith("suite.toml: is no TOML: ")


def test_a_message_is_one_line_whatever_a_library_says() -> None:
    assert str(ClipqError("a\n  b\x1b[2Jc\u2028d")) == "a   b [2Jc d"


def test_a_pointer_in_a_file_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    assert "is a pointer of Git LFS" in refused(read_text, tmp_path / "a", DataError)
