"""The report in a real browser: charts, choices, untrusted names; and its other forms."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
import shutil

import pytest
from browser import opened
from PIL import Image
from support import ON_THIS_CPU, assert_refused, evaluate, export
from synthetic import exact, many, predictions, record, worse, write_results

from clipq.demo import world
from clipq.evaluate.report.data import PageData
from clipq.evaluate.report.page import render, write_report
from clipq.evaluate.results.folders import gather, read_results
from clipq.evaluate.results.record import write_record

# Each around the name of a class, so that engines answer as they do for the name alone.
HOSTILE = [
    "<script>alert(1)</script>{}",
    '"><img src=x onerror=alert(1)>{}',
    "\u202e{} right to left\u202c",
    "</script><b>{}</b>",
    "{{{{ 7 * 7 }}}} {}",
    "{} & <!-- {}",
]
HOSTILE = [text.format(name, name) for text, name in zip(HOSTILE, world.CLASS_NAMES, strict=False)]
EACH = 25


@pytest.fixture(scope="module")
def results(bundles, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for number in range(len(HOSTILE)):
        (root / "data" / f"c{number}").mkdir(parents=True)
        for index in range(EACH):
            Image.fromarray(world.sample("test", 24 * index + number)[1]).save(
                root / "data" / f"c{number}" / f"{index}.png"
            )
    (root / "data" / "c0" / "<img src=x onerror=alert(2)>.png").write_bytes(b"")
    (root / "data" / "classnames.txt").write_text("\n".join(HOSTILE))
    rows = [f"c{n}/{i}.png,{n},{HOSTILE[i % 2].replace(chr(34), '')}" for n in range(len(HOSTILE)) for i in range(EACH)]
    shutil.copy(root / "data" / "classnames.txt", root / "classnames.txt")
    (root / "data" / "labels.csv").write_text("\n".join(["file,label,<b>group</b>", *rows]))
    done = evaluate(
        "run", *(str(bundles / name) for name in ("fp32", "int8-static-minmax", "int2-weight-only-rtn")), "--data", f"folder={root / 'data'}",
        "--simulated", "--data", f"table={root / 'data' / 'labels.csv'}", "-o", str(root / "results"), "--repeats", "3", "--on-bad-image", "skip",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root / "results"


@pytest.fixture(scope="module")
def page(results):
    return results / "report.html"


def test_charts_are_drawn_without_errors_or_network(page):
    with opened(page) as report:
        report.open_everything()
        assert report.said == [] and report.asked == []
        # Per view a reliability diagram for each of the three engines that are no twins, and one chart of the groups.
        assert report.count("[data-chart=reliability] svg.marks") == 2 * 3
        assert report.count("[data-chart=groups] svg.marks") == 1
        assert report.count("svg.marks") == 6 + 1 + 2
        points = "[data-chart=trade_off] [aria-roledescription=point]"
        assert report.count(points) == 3
        labels = [report.page.locator(points).nth(n).get_attribute("aria-label") for n in range(3)]
        assert sorted(label.split(":")[0] for label in labels) == ["fp32", "int2-weight-only-rtn", "int8-static-minmax"]
        assert report.count("[data-chart=bits] [aria-roledescription=point]") == 2
        assert report.count("svg.marks[aria-label], svg.marks [aria-label]") > 9


def test_a_point_answers_to_the_mouse_and_leads_to_its_bundle(page):
    with opened(page) as report:
        point = report.page.locator("[data-chart=trade_off] [aria-label^=int8-static-minmax]").first
        point.scroll_into_view_if_needed()
        point.hover()
        tooltip = report.page.locator("#vg-tooltip-element.visible")
        tooltip.wait_for()
        assert "int8-static-minmax" in tooltip.inner_text() and "ort-cpu" in tooltip.inner_text()
        point.click()
        report.page.wait_for_url("**#bundle-*")
        target = report.page.evaluate("document.querySelector(location.hash).innerText")
        assert "int8-static-minmax" in target


def test_one_filter_for_tables_charts_and_verdicts(page):
    with opened(page) as report:
        rows = ".table[data-table='0'] tbody tr"
        assert report.count(rows) == 4 and report.text("#shown") == "4 of 4 engines"
        report.choose("#filter", lambda field: field.fill("w2"))
        assert report.text("#shown") == "1 of 4 engines" and report.count(rows) == 1
        assert report.count("[data-chart=trade_off] [aria-roledescription=point]") == 1
        assert report.count(".verdicts li:visible") == 1 == report.count(".heat tbody tr:visible")
        report.choose("#filter", lambda field: field.fill("nothing is called so"))
        assert report.count(rows) == 0 and report.text("#shown") == "0 of 4 engines" and report.said == []
        report.choose("#filter", lambda field: field.fill(""))
        report.choose("#kind", lambda field: field.select_option("simulated"))
        assert report.text("#shown") == "1 of 4 engines"


def test_choices_change_the_trade_off(page):
    with opened(page) as report:
        axis = "[data-chart=trade_off] svg"
        assert "top-1 accuracy" in report.page.locator(axis).text_content()
        key = report.page.locator("#trade-metric option", has_text="Brier score").get_attribute("value")
        report.choose("#trade-metric", lambda field: field.select_option(key))
        report.choose("#cost", lambda field: field.select_option(label="file MB, both towers"))
        text = report.page.locator(axis).text_content()
        assert "Brier score" in text and "file MB" in text and report.said == []


def test_the_pareto_front_is_what_nobody_beats(tmp_path):
    base = predictions(2000, accuracy=0.8)
    engines = {
        "fast": {"views": {"test": worse(base, 0.1)}, "milliseconds": 1.0},
        "beaten": {"views": {"test": worse(base, 0.2)}, "milliseconds": 2.0},
        "middle": {"views": {"test": worse(base, 0.05)}, "milliseconds": 3.0},
    }
    folder = write_results(tmp_path / "r", {"test": base}, engines)
    with opened(write_report(read_results([folder]), tmp_path / "r.html")) as report:
        report.page.locator("[data-numbers=trade_off]").evaluate("one => one.parentElement.open = true")
        report.page.locator("[data-numbers=trade_off] table").wait_for()
        cells = report.page.locator("[data-numbers=trade_off] tbody tr").evaluate_all("rows => rows.map(r => [r.cells[0].innerText, r.cells[4].innerText])")  # fmt: skip
    assert dict(cells) == {"fp32": "on the front", "fast": "on the front", "beaten": "", "middle": "on the front"}


def test_the_page_and_the_table_of_numbers_round_alike(page, results):
    """Rounded once, from the stored value: the page shows what the command line and the sentences say."""
    rows = {}
    with (results / "results.csv").open() as stream:
        for row in csv.DictReader(stream):
            if (row["view"], row["group"], row["simulated"]) == ("folder", "", "false"):
                rows[row["bundle"], row["metric"]] = row
    with opened(page) as report:
        shown = report.page.locator(".table[data-table='0'] tbody tr").evaluate_all(
            "rows => rows.map(r => [r.cells[0].innerText, r.cells[1].innerText, r.cells[2].innerText])"
        )
    for name, *cells in shown:
        for metric, cell in zip(("acc1", "ece"), cells, strict=True):
            if (name, metric) in rows:
                row = rows[name, metric]
                value, low, high = (f"{100 * float(row[key]):.1f}" for key in ("value", "low", "high"))
                assert cell.split("\n")[:2] == [value, f"[{low}, {high}]"], (name, metric)


def test_by_keyboard(page):
    with opened(page) as report:
        report.page.keyboard.press("Tab")
        assert report.page.evaluate("document.activeElement.textContent") == "To the verdict"
        header = report.page.locator(".table[data-table='0'] thead button").nth(1)
        header.focus()
        values = "[...document.querySelectorAll(\".table[data-table='0'] tbody tr\")].map(r => parseFloat(r.cells[1].innerText))"
        report.page.keyboard.press("Enter")
        down = report.page.evaluate(values)
        assert down == sorted(down, reverse=True) and report.count("[aria-sort=descending]") == 1
        report.page.keyboard.press("Enter")
        assert report.page.evaluate(values) == sorted(down)
        unnamed = "[...document.querySelectorAll('.scroll, .chart.vega-embed, input, select')].filter(one => !one.ariaLabel && !one.closest('label')).length"
        assert report.page.evaluate(unnamed) == 0
        assert report.page.evaluate("[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0)")


def test_tables_stand_behind_charts(page):
    with opened(page) as report:
        report.open_everything()
        assert report.count("[data-numbers=reliability] table") == 6
        assert report.count("[data-numbers=bits] tbody tr") == 3


def test_nothing_is_fetched(page):
    text = page.read_text()
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?(?!#)""", text.split("<script>")[0])
    assert "default-src 'none'" in text and len(text) < 5_000_000


def test_hostile_names_show_as_text(page):
    with opened(page) as report:
        report.open_everything()
        assert report.said == [] and report.asked == []
        body = report.page.locator("body").inner_text()
        assert "<b>group</b>=" in body and "<img src=x onerror=alert(2)>.png" in body
        assert report.page.evaluate("[...document.querySelectorAll('b')].some(one => /group|bold/.test(one.textContent))") is False  # fmt: skip
        assert report.count("img[src=x]") == 0
        gallery = report.text("#gallery")
        assert any(name in gallery for name in HOSTILE) and "49" not in report.text("h1")


def test_flips_have_their_photos_and_no_images_has_none(page, results, tmp_path):
    with opened(page) as report:
        shown = report.page.locator("#gallery img")
        assert shown.count() > 0 and shown.first.evaluate("one => one.complete && one.naturalWidth > 8")
        assert report.page.evaluate("document.querySelectorAll('#gallery figure').length") >= shown.count()
        report.page.locator("#flip-kind").select_option("1")
        assert report.count("#gallery .lost") == 0
    done = evaluate("report", str(results), "--no-images", "-o", str(tmp_path / "bare.html"))
    assert done.returncode == 0, done.stderr
    with opened(tmp_path / "bare.html") as report:
        assert report.count("#gallery img") == 0 and report.count("#gallery figure") > 0


def test_a_thumbnail_outside_the_results_is_not_shown(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "deep" / "results")
    (tmp_path / "deep" / "secret.webp").write_bytes(b"secret bytes")
    moved = 0
    for path in (copy / "records").iterdir():
        found = json.loads(path.read_text())
        for flip in [flip for view in found["views"] for flip in view["flips"]]:
            flip["thumbnail"] = "../secret.webp"
            moved += 1
        path.write_text(json.dumps(found))
    assert moved
    with opened(write_report(read_results([copy]), tmp_path / "r.html")) as report:
        assert report.count("#gallery img") == 0


def test_a_thumbnail_that_is_a_link_is_not_followed(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    pictures = sorted((copy / "thumbnails").iterdir())
    secret = tmp_path / "secret.webp"
    pictures[0].rename(secret)
    for path in pictures[1:]:
        path.unlink()
    for path in pictures:
        path.symlink_to(secret)
    assert _photos(read_results([copy])) == {}
    pictures[0].unlink()
    pictures[0].write_bytes(b"no picture")
    assert _photos(read_results([copy])) == {}
    pictures[0].write_bytes(secret.read_bytes())
    assert list(_photos(read_results([copy]))) == [pictures[0].name]


def _photos(results):
    return json.loads(gzip.decompress(base64.b64decode(PageData(results, True).encode())))["photos"]


def test_dark_is_dark(page):
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    ink = "getComputedStyle(document.querySelector('[data-chart=trade_off] svg.marks text')).fill.match(/\\d+/g).map(Number)"
    with opened(page, color_scheme="light") as report:
        assert min(report.page.evaluate(ground)) > 240 and max(report.page.evaluate(ink)) < 100
        # A reader may switch while the page is open.
        report.page.evaluate("delete document.documentElement.dataset.ready")
        report.page.emulate_media(color_scheme="dark")
        report.wait()
        assert max(report.page.evaluate(ground)) < 60 and min(report.page.evaluate(ink)) > 150


def test_report_command_writes_the_same_page(page, results, tmp_path):
    done = evaluate("report", str(results), "-o", str(tmp_path / "again.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.html").read_text() == page.read_text()


def test_several_results_side_by_side(results, tmp_path):
    other = write_results(tmp_path / "other", {"test": predictions(500)}, {"int8-static-minmax": {"views": {"test": predictions(500)}}})  # fmt: skip
    done = evaluate("report", str(results), str(other), "-o", str(tmp_path / "both.html"))
    assert done.returncode == 0, done.stderr
    with opened(tmp_path / "both.html") as report:
        assert report.text("#shown") == "6 of 6 engines" and report.said == []
        names = report.page.locator(".heat tbody th").all_inner_texts()
    assert "other/int8-static-minmax" in names and "results/int8-static-minmax" in names
    done = evaluate("report", str(results), str(other))
    assert (
        done.returncode == 2 and "say where the report goes with -o" in done.stderr and "Traceback" not in done.stderr
    )


def test_one_name_for_two_data_sets_stays_two_views(tmp_path):
    """And a failed engine says in which folder it failed."""
    small, large = predictions(500), predictions(3000, seed=3, labels_seed=3)
    one = write_results(tmp_path / "one", {"test": large}, {"int8": {"views": {"test": large}}})
    two = write_results(tmp_path / "two", {"test": small}, {"int8": {"views": {}, "failed": "lost"}})
    both = read_results([one, two])
    assert set(both.views) == {"one/test", "two/test"} and [entry.name for entry in both.failed] == ["two/int8"]
    assert both.views["two/test"].n == 500
    same = write_results(tmp_path / "same", {"test": large}, {"int8": {"views": {"test": large}}})
    assert set(read_results([one, same]).views) == {"test"}
    assert_refused(evaluate("report", str(one), str(one), "-o", str(tmp_path / "r.html")), "given twice")


def test_a_reference_alone(tmp_path):
    folder = write_results(tmp_path / "r", {"test": predictions(300)}, {})
    with opened(write_report(read_results([folder]), tmp_path / "r.html")) as report:
        report.open_everything()
        assert report.said == [] and "No engine of this choice" in report.text("#bits")
        assert report.page.evaluate("document.documentElement.scrollHeight") < 6000


def test_outputs_that_cannot_be_written_are_refused(results, tmp_path):
    assert_refused(evaluate("report", str(results), "-o", str(tmp_path)), str(tmp_path))
    (tmp_path / "file").write_text("x")
    assert_refused(evaluate("report", str(results), "-o", str(tmp_path / "file")), "is no .html file")
    assert (tmp_path / "file").read_text() == "x"
    assert_refused(evaluate("report", str(results), "-o", str(tmp_path / "file" / "r.html")), "file")


def test_a_files_ending_says_its_form(results, tmp_path):
    for name, begins in (
        ("r.md", "# "),
        ("R.MD", "# "),
        ("r.json", "{"),
        ("r.csv", "engine,"),
        ("r.html", "<!DOCTYPE"),
        ("r.x", "<!DOC"),
    ):
        done = evaluate("report", str(results), "--no-images", "-o", str(tmp_path / name))
        assert done.returncode == 0 and (tmp_path / name).read_text().startswith(begins), done.stderr
    for flags in (("--format", "md"), ("--format", "html")):
        assert_refused(
            evaluate("report", str(results), *flags, "-o", str(tmp_path / "new.json")), "new.json", "--format"
        )
    assert not (tmp_path / "new.json").exists()
    done = evaluate("report", str(results), "--format", "md", "-o", str(tmp_path / "notes.txt"))
    assert done.returncode == 0 and (tmp_path / "notes.txt").read_text().startswith("# ")


def test_json_has_no_nan(tmp_path):
    nan = [exact("test", "near", "auroc.mcm", float("nan"))]
    base = predictions(300)
    first = record("fp32", {"test": base}, recipe="fp32", extra=nan)
    for made in (first, record("int8", {"test": base}, reference="fp32", base=first[1], extra=nan)):
        write_record(tmp_path / "r", made[0])
    done = evaluate("report", str(tmp_path / "r"), "--format", "json", "-o", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text and json.loads(text, parse_constant=pytest.fail)


def test_a_bundle_that_says_int8_and_runs_in_float_is_called_out(page, tmp_path):
    copy = shutil.copytree(page.parent / "records", tmp_path / "results" / "records")
    path = copy / f"int8-static-minmax__{ON_THIS_CPU}.json"
    found = json.loads(path.read_text())
    found["census"][0] |= {"integer_share": 0.0, "verdict": "float"}
    path.write_text(json.dumps(found))
    assert evaluate("report", str(copy.parent)).returncode == 0
    text = (copy.parent / "report.html").read_text()
    assert "says int8-static, runs in floating point" in text
    assert "runs in floating point" not in page.read_text()


def test_a_failed_engine_is_named_and_all_failed_refused(tmp_path):
    base = predictions(300)
    reference = record("fp32", {"test": base}, recipe="fp32")
    failed = record("int8", {}, reference="fp32", failed="<b>out of memory")[0]
    page = render(gather([(tmp_path, [reference[0], failed])]))
    assert "&lt;b&gt;out of memory" in page and "failed and was not measured" in page
    write_record(tmp_path, failed)
    assert_refused(evaluate("report", str(tmp_path)), "nothing to report")
    assert_refused(evaluate("report", str(tmp_path / "nowhere")), "nowhere")
    assert not (tmp_path / "report.html").exists()


def test_forty_engines_on_two_hundred_views_stay_small(tmp_path):
    page = write_report(gather([(tmp_path, many(40, 200))]), tmp_path / "big.html")
    assert page.stat().st_size < 5_000_000
    with opened(page) as report:
        assert report.text("#shown") == "40 of 40 engines" and report.said == []
        assert report.count("[data-chart=trade_off] [aria-roledescription=point]") == 40
        report.page.locator("#view-150 > summary").click()
        report.page.locator("#view-150 tbody tr").first.wait_for()
        assert "view 149" in report.text("#view-150 summary")


@pytest.mark.parametrize("form", ["md", "json", "csv"])
def test_other_forms(results, tmp_path, form):
    target = tmp_path / f"report.{form}"
    done = evaluate("report", str(results), "--format", form, "-o", str(target))
    assert done.returncode == 0 and done.stdout.strip() == str(target), done.stderr
    text = target.read_text()
    if form == "json":
        found = json.loads(text)
        engine = next(one for one in found["engines"] if one["name"] == "int2-weight-only-rtn")
        assert engine["verdict"].startswith("int2-weight-only-rtn on ort-cpu (") and len(engine["digest"]) == 64
        assert engine["axes"]["accuracy"]["verdict"] in ("better", "same", "worse", "unknown")
    elif form == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        with (results / "results.csv").open() as stream:
            assert len(rows) == len(list(csv.DictReader(stream)))
        assert rows[0]["engine"] and rows[0]["metric"]
    else:
        assert "int2-weight-only-rtn on ort-cpu" in text and "| engine | accuracy |" in text and "<script>" not in text


def test_pdf(results, tmp_path):
    pypdf = pytest.importorskip("pypdf")
    if not shutil.which("chromium"):
        assert_refused(evaluate("report", str(results), "--format", "pdf", "-o", str(tmp_path / "r.pdf")), "Chromium")
        return
    done = evaluate("report", str(results), "--format", "pdf", "-o", str(tmp_path / "r.pdf"))
    assert done.returncode == 0, done.stderr
    text = " ".join(page.extract_text() for page in pypdf.PdfReader(tmp_path / "r.pdf").pages)
    # What is folded on the page is open on paper, and drawn.
    for caption in ("Metrics on folder", "Metrics on table", "Logit-scale tuning on table"):
        assert caption in text, caption
    assert text.count("accuracy") > 12


def test_pdf_without_a_browser_is_refused(results, tmp_path):
    done = evaluate("report", str(results), "--format", "pdf", "-o", str(tmp_path / "r.pdf"), env={"PATH": ""})
    assert_refused(done, "Chromium", "PATH")
    assert not (tmp_path / "r.pdf").exists()


@pytest.mark.shared
def test_real_photos(shared, tmp_path):
    """The report of a suite on photos and a checkpoint with photo weights."""
    pytest.importorskip("open_clip", reason="needs the export extra")
    photos = shared / "photos"
    suite = f"""
        templates = "simple-7"
        [[view]]
        name = "art"
        source = "{photos / "pacs" / "art_painting"}"
        samples = 120
        [[view]]
        name = "cartoon"
        source = "{photos / "pacs" / "cartoon"}"
        role = "shifted"
        samples = 60
        [[view]]
        name = "cracked"
        source = "{photos / "dtd"}"
        role = "far-ood"
        samples = 60
        [latency]
        batches = [1]
        repeats = 5
    """
    (tmp_path / "suite.toml").write_text(suite)
    # A few of each class: ranges of so small a checkpoint need no more, and calibration was most of this test.
    for folder in (photos / "cifar10" / "train").iterdir():
        if folder.is_dir():
            few = tmp_path / "calibration" / folder.name
            few.mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:3]:
                shutil.copy(photo, few)
    made = export("run", f"local-dir:{shared / 'models' / 'lite0-lit'}", "-o", str(tmp_path / "engines"), "--recipe", "int8-static",
                  "--recipe", "int2-weight-only", "--calibration-set", str(tmp_path / "calibration"))  # fmt: skip
    assert made.returncode == 0, made.stderr
    engines = [str(path) for path in sorted((tmp_path / "engines").iterdir())]
    done = evaluate("run", *engines, "--suite", str(tmp_path / "suite.toml"), "-o", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    with opened(tmp_path / "results" / "report.html") as report:
        report.open_everything()
        assert report.said == [] and report.asked == []
        assert report.count("[data-chart=reliability] svg.marks") == 2 * 3
        assert report.count("[data-chart=histogram] svg.marks") == 3
        assert report.page.locator("#gallery img").first.evaluate("one => one.naturalWidth") > 8
