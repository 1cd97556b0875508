"""Members of shards paired by webdataset's rule: each is read, an error, or counted and named."""

from __future__ import annotations

import io
import itertools
import json
import tarfile

import pytest

from clipq.data.open import open_view
from clipq.data.views import choose_samples
from clipq.errors import DataError


def write(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def dataset(root, *shards, names=("cat", "dog")):
    (root / "test").mkdir(parents=True, exist_ok=True)
    (root / "test" / "nshards.txt").write_text(str(len(shards)))
    (root / "classnames.txt").write_text("\n".join(names))
    for number, members in enumerate(shards):
        write(root / "test" / f"{number}.tar", members)
    return f"wds:{root}"


def pair(key, label=0, suffix=".jpg"):
    return [(f"{key}{suffix}", f"pixels of {key}".encode()), (f"{key}.cls", str(label).encode())]


def joined(*pairs):
    return list(itertools.chain(*pairs))


def ids(view):
    return [sample.id.removeprefix("test/0.tar/") for sample in view.samples]


@pytest.mark.parametrize(
    "keys",
    [
        ("./s0", "./s1"), ("set1.0/a", "set1.0/b"), ("a.b/c.d/s0", "s1"), ("a/s0", "b/s0"), ("é", "名"),
        ("__s0", "s 1"), ("./a", "a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".webp", ".Png"])
def test_the_folder_is_part_of_the_key(tmp_path, keys, suffix):
    spec = dataset(tmp_path, joined(*(pair(key, index, suffix) for index, key in enumerate(keys))))
    view = open_view(spec)
    assert ids(view) == [key + suffix for key in keys] and [sample.label for sample in view.samples] == [0, 1]
    assert view.encoded(1) == f"pixels of {keys[1]}".encode() and not view.left_out


def test_members_may_lie_anywhere_in_their_shard(tmp_path):
    members = joined(pair("a", 0), pair("b", 1), pair("c", 0))
    view = open_view(dataset(tmp_path, [*members[1::2], *members[0::2]]))
    assert ids(view) == ["a.jpg", "b.jpg", "c.jpg"] and [sample.label for sample in view.samples] == [0, 1, 0]


def test_shards_have_their_own_keys(tmp_path):
    view = open_view(dataset(tmp_path, pair("s0", 0), pair("s0", 1)))
    assert [sample.id for sample in view.samples] == ["test/0.tar/s0.jpg", "test/1.tar/s0.jpg"]


@pytest.mark.parametrize(
    ("twice", "named"),
    [
        ([("s0.jpg", b"1")], "s0.jpg and s0.jpg"), ([("s0.JPG", b"1")], "s0.jpg and s0.JPG"),
        ([("s0.png", b"1")], "s0.jpg and s0.png"), ([("s0.cls", b"1")], "s0.cls and s0.cls"),
        ([("s0.CLS", b"0")], "s0.cls and s0.CLS"), ([("s0.txt", b"1"), ("s0.txt", b"2")], "s0.txt and s0.txt"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("want", ["labels", "images"])
def test_two_of_a_kind_under_one_key(tmp_path, twice, named, want):
    spec = dataset(tmp_path, [*pair("s0"), *pair("s1"), *pair("s2"), *twice])
    with pytest.raises(DataError, match=rf"{named} are both under the key 's0'"):
        open_view(spec, want)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (pair("img_0.5"), r"img_0\.5\.jpg cannot be paired"), (pair("IMG.v2"), r"IMG\.v2\.jpg cannot be paired"),
        ([("s9.jpg", b"")], r"s9\.jpg has no \.cls"), ([("s9.cls", b"1")], r"s9\.cls cannot be paired"),
        ([("s9.xyz", b""), ("s9.cls", b"1")], r"s9\.cls cannot be paired"),
        (pair("s0.v2"), r"s0\.v2\.cls cannot be paired"), ([("a.b/s9.x.jpg", b"")], r"s9\.x\.jpg cannot be paired"),
    ],
)  # fmt: skip
def test_no_sample_is_lost_in_silence(tmp_path, lost, named):
    with pytest.raises(DataError, match=named):
        open_view(dataset(tmp_path, [*pair("s0"), *pair("s1"), *lost]))


def test_what_is_no_sample_is_counted_and_named(tmp_path):
    more = [
        ("s0.json", b"{}"), ("s1.json", b"{}"), ("s0.seg.png", b"1"), ("README.md", b"1"), ("noext", b"1"),
        ("._s0.jpg", b"1"), ("a/.DS_Store", b"1"), ("s7.npy", b"1"), ("s8.txt", b"a cat"),
    ]  # fmt: skip
    spec = dataset(tmp_path, [*pair("s0"), *pair("s1", 1), *more])
    (tmp_path / "test" / "1.tar").write_bytes(b"")
    view = open_view(spec)
    assert len(view.samples) == 2 and len(view.left_out) + view.left_out_unnamed == 10
    assert view.left_out == {
        "*.json": "2 files beside images",
        "*.seg.png": "1 files beside images",
        "test/0.tar/README.md": "has no image under its key 'README'",
        "test/0.tar/noext": "is hidden, or has no extension",
        "test/0.tar/._s0.jpg": "is hidden, or has no extension",
        "test/0.tar/a/.DS_Store": "is hidden, or has no extension",
        "test/0.tar/s7.npy": "has no image under its key 's7'",
        "test/0.tar/s8.txt": "has no image under its key 's8'",
        "test/1.tar": "is no shard that nshards.txt counts",
    }
    with pytest.raises(DataError, match=r"s8\.txt cannot be paired"):
        open_view(spec, "captions")


@pytest.mark.parametrize("text", [" 1\n", "1", "1\r\n", "\ufeff1", "\t1 "])
def test_a_class_index(tmp_path, text):
    shard = [*pair("s0"), ("s1.jpg", b""), ("s1.cls", text.encode())]
    assert [sample.label for sample in open_view(dataset(tmp_path, shard)).samples] == [0, 1]


@pytest.mark.parametrize(
    "text", ["٣", "１", "007", "01", "+1", "-1", "1.0", "1e0", "1_0", "0x1", "", "cat", "1 1", "²", "9" * 12]
)
def test_what_is_no_class_index(tmp_path, text):
    shard = [*pair("s0"), *pair("s2"), ("s1.jpg", b""), ("s1.cls", text.encode())]
    with pytest.raises(DataError, match=r"s1\.cls holds .*, which is no class index"):
        open_view(dataset(tmp_path, shard))


def test_texts_of_unreasonable_size_or_encoding(tmp_path):
    for text, said in (
        (b"1" + b" " * 5000, "has 5001 bytes"),
        (b"\xff1", "is not UTF-8"),
        ("1".encode("utf-16"), "UTF-8"),
    ):
        with pytest.raises(DataError, match=said):
            open_view(dataset(tmp_path, [*pair("s0"), ("s1.jpg", b""), ("s1.cls", text)]))
    large = [("s0.jpg", b"1"), ("s0.txt", b"a cat\n" * 200_000)]
    with pytest.raises(DataError, match=r"s0\.txt has 1200000 bytes, more than the 1048576 of captions"):
        open_view(dataset(tmp_path, large), "captions")
    with pytest.raises(DataError, match=r"s0\.txt is empty"):
        open_view(dataset(tmp_path, [("s0.jpg", b"1"), ("s0.txt", b"\n")]), "captions")


def test_a_shard_without_end_marker_is_told(tmp_path):
    spec = dataset(tmp_path, [*pair("s0"), *pair("s1", 1), *pair("s2")], [*pair("s3")])
    shard = tmp_path / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[: 4 * 1024])
    view = open_view(spec)
    assert len(view.samples) == 3 and not view.left_out
    assert [said.split()[0] for said in view.unverified] == ["test/0.tar"]
    assert choose_samples(view, 2, 0).unverified == view.unverified
    sizes = tmp_path / "test" / "sizes.json"
    sizes.write_text(json.dumps({"0.tar": 3, "1.tar": 1}))
    with pytest.raises(DataError, match=r"test/0\.tar: has 2 samples, test/sizes\.json declares 3"):
        open_view(spec)
    sizes.write_text(json.dumps({"0.tar": 2}))
    assert not open_view(spec).unverified
    sizes.write_text(json.dumps({"0.tar": 2, "1.tar": 1, "2.tar": 5}))
    assert list(open_view(spec).left_out) == ["test/2.tar"]
    for text in ('{"0.tar": "2"}', "[2]", '{"0.tar": true}', "{"):
        sizes.write_text(text)
        with pytest.raises(DataError, match=r"sizes\.json"):
            open_view(spec)


def test_what_stands_in_nshards(tmp_path):
    spec = dataset(tmp_path, pair("s0"), pair("s1", 1))
    for text in ("", "two", "-1", "２", "1e3", "9" * 5000, "<html>"):
        (tmp_path / "test" / "nshards.txt").write_text(text)
        with pytest.raises(DataError, match=r"nshards\.txt"):
            open_view(spec)
    (tmp_path / "test" / "nshards.txt").write_text("999999")
    with pytest.raises(DataError, match=r"test/2\.tar is missing"):
        open_view(spec)


def test_class_names_stay_in_their_lines(tmp_path):
    spec = dataset(tmp_path, [*pair("s0"), *pair("s1", 1)])
    (tmp_path / "classnames.txt").write_text("cat\n\ndog\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        open_view(spec)
    (tmp_path / "classnames.txt").write_bytes("cat\x85tabby\r\ndog\u2028dogs\r\n\r\n".encode())
    assert open_view(spec).classes.names == ("cat\x85tabby", "dog\u2028dogs")
    with (tmp_path / "classnames.txt").open("wb") as stream:
        stream.truncate(3 * 2**30)
    with pytest.raises(DataError, match="has 3221225472 bytes"):
        open_view(spec)


@pytest.mark.parametrize(
    "split", ["/tmp/x", "..", "../test", "a/../test", ".", "test/", "a\\b", "c:", "a\x00b", "..\\x"]
)
def test_a_split_is_a_name(tmp_path, split):
    spec = dataset(tmp_path / "set", [*pair("s0"), *pair("s1", 1)])
    for place in (spec, "wds:http://127.0.0.1:9/set"):
        with pytest.raises(DataError, match=r"is no name of a folder in it|holds a NUL"):
            open_view(f"{place}:split={split}", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_shard_that_becomes_shorter(tmp_path):
    view = open_view(dataset(tmp_path, [*pair("s0"), *pair("s1", 1)]))
    (tmp_path / "test" / "0.tar").write_bytes(b"")
    with pytest.raises(DataError, match="became shorter"):
        view.encoded(0)


def test_an_image_of_unreasonable_size(tmp_path):
    spec = dataset(tmp_path, [*pair("s0"), *pair("s1", 1)])
    shard = tmp_path / "test" / "0.tar"
    rest = shard.read_bytes()
    member = tarfile.TarInfo("s2.jpg")
    member.size = 5 * 2**30
    with shard.open("wb") as stream:
        stream.write(member.tobuf())
        stream.seek(member.size, 1)
        stream.write(rest)
    with pytest.raises(DataError, match=r"s2\.jpg has 5368709120 bytes, more than the 268435456 of an image"):
        open_view(spec, "images")
