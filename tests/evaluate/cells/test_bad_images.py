"""Images that cannot be decoded stop a run or are counted, odd ones are read."""

from __future__ import annotations

import numpy as np
from photos import image_folder
from PIL import Image
from support import ON_THIS_CPU, assert_refused, evaluate

from clipq.demo import world
from clipq.evaluate.results.record import read_records


def test_bad_images_stop_or_are_counted(bundles, tmp_path):
    import json

    root = image_folder(tmp_path / "set", each=5)
    (root / "ring" / "1.png").write_bytes(b"")
    (root / "star" / "2.png").write_bytes((root / "star" / "2.png").read_bytes()[:300])
    arguments = ["run", str(bundles / "fp32"), "--data", str(root), "-o", str(tmp_path / "results"), "--no-bench"]
    assert_refused(evaluate(*arguments), "1.png", "--on-bad-image skip")
    assert not (tmp_path / "results" / "records").exists()
    done = evaluate(*arguments, "--on-bad-image", "skip")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "records" / f"fp32__{ON_THIS_CPU}.json").read_text())
    assert record["views"][0]["n"] == 13 and set(record["views"][0]["skipped"]) == {"ring/1.png", "star/2.png"}
    assert "2 images were skipped" in (tmp_path / "results" / "report.html").read_text()
    assert_refused(evaluate(*arguments), "1.png")


def test_captions_of_bad_images_are_not_counted(bundles, tmp_path):
    root = image_folder(tmp_path / "set", each=4)
    (root / "ring" / "1.png").write_bytes(b"")
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    lines = [f"{file},{word} {file}\n" for word in ("a", "the") for file in files]
    (root / "captions.csv").write_text("file,caption\n" + "".join(lines))
    suite = tmp_path / "suite.toml"
    suite.write_text(f"on_bad_image = 'skip'\n[[view]]\nsource = '{root / 'captions.csv'}'\nrole = 'retrieval'\n")
    output = tmp_path / "results"
    done = evaluate("run", str(bundles / "fp32"), "--suite", str(suite), "-o", str(output), "--no-bench")
    assert done.returncode == 0, done.stderr
    (record,) = read_records(output)
    assert record.views[0].n == 11 and record.views[0].captions == 22
    assert {row.n for row in record.measurements if "retrieval" in row.metric} == {11}


def test_files_that_are_no_samples_are_counted_and_named(bundles, tmp_path):
    root = image_folder(tmp_path / "set", each=5)
    for number in range(120):
        (root / f"{number:03d}.txt").write_text("x")
    (root / "@eaDir").mkdir()
    done = evaluate("run", str(bundles / "fp32"), "--data", str(root), "-o", str(tmp_path / "results"), "--no-bench")
    assert done.returncode == 0, done.stderr
    assert "121 files left out" in " ".join(done.stdout.split())
    (record,) = read_records(tmp_path / "results")
    (view,) = record.views
    assert view.n == 15 and view.classes == 3
    assert view.left_out_count == 121 and len(view.left_out) == 100 and view.left_out["000.txt"] == "no image's suffix"
    page = (tmp_path / "results" / "report.html").read_text()
    assert "121 files are no samples" in page and "098.txt" in page
    done = evaluate("card", str(tmp_path / "results"), "--bundle", "fp32", "-o", str(tmp_path / "card.md"))
    assert "- 121 files of the data sets are no samples" in (tmp_path / "card.md").read_text()


def test_odd_images_are_read(bundles, tmp_path):
    root = image_folder(tmp_path / "set", each=2)
    scene = Image.fromarray(world.sample("test", 3)[1])
    scene.convert("P").save(root / "ring" / "palette.png")
    scene.convert("CMYK").save(root / "ring" / "cmyk.jpg")
    scene.convert("L").save(root / "star" / "grey.png")
    scene.resize((10_000, 20)).save(root / "star" / "wide.png")
    scene.save(root / "star" / "mislabelled.jpg", format="PNG")
    done = evaluate(
        "run", str(bundles / "fp32"), "--data", str(root), "-o", str(tmp_path / "results"), "--no-bench", "--json"
    )
    assert done.returncode == 0, done.stderr
    Image.fromarray(np.full((40, 40), 9_000, np.uint16)).save(root / "ring" / "deep.png")
    done = evaluate("run", str(bundles / "fp32"), "--data", str(root), "-o", str(tmp_path / "results"), "--no-bench")
    assert_refused(done, "deep.png", "16 or 32 bits")
