"""Reports: what is saved comes back, equal documents give equal bytes, the page stands alone."""

import dataclasses
import html
import io
import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from jaxrobust.evaluation import AttackRecord, CertificateRecord, Report
from jaxrobust.report import (
    Certified,
    Curve,
    Document,
    Entry,
    certified_figure,
    load,
    print_tables,
    render,
    save,
)
from jaxrobust.report._document import as_document
from jaxrobust.report._gallery import MOST_TILES, gallery
from jaxrobust.report._tables import CERTIFIED, main_tables, percent
from jaxrobust.types import Finding

FINDING = Finding(
    "one_step_beats_many", 0.12, 0.02, [3, 17], "Gradients may be masked.", "Run square as well."
)


def a_report(
    *,
    norm="linf",
    eps=0.1,
    n=12,
    attacks=("zeta", "alpha"),
    certificates=("interval",),
    findings=(FINDING,),
    under=False,
    shape=(6, 5, 1),
    kept=9,
):
    """A report on n images: the first is wrong, each attack breaks two, half is certified."""
    rng = np.random.default_rng(len(norm) + n)
    label = np.arange(n) % 10
    correct = np.arange(n) > 0
    broken_by = np.full(n, "", "<U16")
    distance = np.where(correct, np.inf, 0.0)
    examples = {"label": label, "clean_prediction": np.where(correct, label, 9)}
    after, alone, records, intervals = {}, {}, {}, {"clean": (0.6, 0.99), "robust": (0.2, 0.7)}
    for k, name in enumerate(attacks):
        rows = slice(3 + 2 * k, 5 + 2 * k)
        broken_by[rows], distance[rows] = name, eps * (k + 1) / 4
        examples[f"prediction/{name}"] = np.where(broken_by == name, (label + 3) % 10, label)
        examples[f"distance/{name}"] = np.where(broken_by == name, eps * (k + 1) / 4, np.nan)
        after[name] = float((correct & (broken_by == "")).mean())
        alone[name] = after[name] + 0.011 * (k + 1)
        intervals |= {f"after {name}": (0.31, 0.32 + 0.1 * k), f"under {name}": (0.33, 0.44)}
        median = {"l0": 12.0, "l2": 0.345678, "linf": 0.1} if k else {}
        spent = 10 if k else None
        records[name] = AttackRecord(1.5 + k, n - 2 * k, 2, spent, spent, k, median)
    claims = {
        name: CertificateRecord(0.5, name, f"{name} holds because it relaxes.", norm, eps)
        for name in certificates
    }
    certified = {name: 0.25 + 0.0625 * k for k, name in enumerate(certificates)}
    intervals |= {f"certified {name}": (0.051, 0.572) for name in certificates}
    clean = rng.random((kept, *shape)).astype(np.float32)
    change = eps * rng.choice([-1, 1], clean.shape)
    return Report(
        norm=norm, eps=eps, num_examples=n, num_classes=10,
        clean_accuracy=float(correct.mean()),
        robust_accuracy=float((correct & (broken_by == "")).mean()),
        accuracy_after=after, accuracy_under=alone if under else {}, certified_accuracy=certified,
        intervals=intervals, attacks=records, certificates=claims, findings=list(findings),
        settings={"key": [0, 42], "batch_size": 8, "votes": 1},
        environment={"jax": "0.10.2", "device": "cpu: fake"},
        examples=examples
        | {
            "clean_correct": correct,
            "robust": correct & (broken_by == ""),
            "broken_by": broken_by,
            "distance": distance,
        },
        images={"clean": clean, "adversarial": np.clip(clean + change, 0, 1).astype(np.float32)}
        if kept
        else {},
    )  # fmt: skip


def a_history():
    lines = []
    for step in range(50, 301, 50):
        accuracy = 1 - 40 / step
        lines.append({"step": step, "epoch": step // 100, "loss": 60 / step, "accuracy": accuracy})
        if step % 100 == 0:
            validation = {"accuracy": accuracy - 0.01, "loss": float("nan")}
            lines.append({"step": step, "epoch": step // 100, "validation": validation})
    return lines


def a_document(**changes):
    curve = Curve([0.0, 0.1, 0.2], [0.9, 0.6, 0.3], {"interval": [0.9, 0.2, 0.0]})
    bare = Curve([0.0, 0.5], [0.9, 0.4], {})
    trained = {"linf 0.1": a_report(certificates=("zonotope", "interval"), findings=())}
    standard = {"linf 0.1": a_report(), "l2 0.5": a_report(norm="l2", eps=0.5, certificates=())}
    document = Document(
        "Digits", "python -m jaxrobust demo",
        [
            Entry("standard", "Trained on clean images.", standard, {"linf": curve, "l2": bare},
                  a_history()),
            Entry("robust", "", trained, {"linf": curve}, []),
        ],
        ["A short run."], "2025-11-21 05:30 UTC",
    )  # fmt: skip
    return dataclasses.replace(document, **changes)


def an_entry(report=None, *, name="only", curves=None, history=()):
    return Entry(name, "", {} if report is None else {"t": report}, curves or {}, list(history))


def assert_same(a, b):
    """Equality that looks into arrays, and at the order of what has one."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, float):
        assert a == b or (np.isnan(a) and np.isnan(b))
    else:
        assert a == b


def text_of(page):
    """What a reader sees of a page."""
    body = page.read_text()
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", body, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<wbr>|<[^>]+>", "", body)).split())


def all_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "report"
    page = save(a_document(), folder)
    assert page == folder / "index.html"
    return folder


def test_a_saved_document_comes_back_equal(saved):
    loaded = load(saved)
    assert_same(loaded, a_document())
    # The order of attacks means something and is not the alphabet's.
    assert list(loaded.entries[0].reports) == ["linf 0.1", "l2 0.5"]
    assert list(loaded.entries[0].reports["linf 0.1"].accuracy_after) == ["zeta", "alpha"]
    assert list(loaded.entries[1].reports["linf 0.1"].certificates) == ["zonotope", "interval"]


def test_the_same_document_gives_the_same_bytes(saved, tmp_path):
    save(load(saved), tmp_path)
    assert all_bytes(tmp_path) == all_bytes(saved)
    assert {"accuracy-0-linf.svg", "accuracy-1-l2.svg", "training-0-standard.svg"} <= {
        path.name for path in (saved / "figures").iterdir()
    }


def test_what_evaluate_returned_makes_a_page(tmp_path):
    one, other = a_report(), a_report(norm="l2", eps=0.5)
    save(one, tmp_path)
    (entry,) = load(tmp_path).entries
    assert_same(entry.reports, {"linf 0.1": one})
    page = save({"plain": one, "robust": other}, tmp_path)
    assert [entry.name for entry in load(tmp_path).entries] == ["plain", "robust"]
    text = text_of(page)
    assert "plain" in text
    assert "l2 0.5" in text
    assert ", ." not in text
    for wrong in ([one], {"plain": 3}, "report"):
        with pytest.raises(ValueError, match="found must be a Document, a Report"):
            as_document(wrong)


def test_json_knows_no_nan_and_numbers_may_be_numpys(tmp_path):
    odd = FINDING._replace(value=float("inf"))
    report = a_report(findings=[odd], kept=0)
    curve = Curve([np.float64(0), np.float64(1)], [np.float64(0.5), np.float64(0.25)], {})
    lines = [{"step": np.int64(3), "epoch": 0, "loss": np.float32(1.5)}]
    entry = an_entry(report, curves={"linf": curve}, history=lines)
    save(a_document(entries=[entry]), tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    (loaded,) = load(tmp_path).entries
    assert loaded.reports["t"].findings == [odd]
    assert loaded.history == [{"step": 3, "epoch": 0, "loss": 1.5}]


def test_saving_again_replaces_the_figures(tmp_path):
    save(a_document(entries=[an_entry(a_report(), history=a_history())]), tmp_path)
    save(a_document(entries=[an_entry(a_report(kept=0))]), tmp_path)
    assert list((tmp_path / "figures").iterdir()) == []


def test_render_draws_the_page_again(saved, tmp_path):
    for name in ("report.json", "examples.npz"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    assert render(tmp_path).read_bytes() == (saved / "index.html").read_bytes()


def test_a_curve_needs_one_value_a_radius():
    with pytest.raises(ValueError, match="accuracy must hold one value for each of the 2 radii"):
        Curve([0.0, 0.1], [0.5], {})
    with pytest.raises(ValueError, match="ibp must hold"):
        Curve([0.0], [0.5], {"ibp": []})


def lines_of(svg):
    """The polylines of a chart, as fractions of the axes' width and of accuracy 1."""
    found = []
    for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        numbers = re.findall(r"[ML] ([-.\d]+) ([-.\d]+)", path.get("d"))
        found.append(np.array(numbers, float).reshape(-1, 2))
    return found


def test_no_curve_shows_a_value_between_two_radii(tmp_path):
    """A certified curve keeps the value of the next larger radius, an attacked one the last's."""
    certified = Certified("linf", 8, 0.5, [0.1, 0.2], {"lp": [0.25, 0.125]}, [0.25, 0.125])
    steps = [line for line in lines_of(certified_figure(certified)) if len(line) == 5]
    assert len(steps) == 2  # lp, and any method below it
    for line in steps:
        (x, y), width = line.T, line[-1, 0] - line[0, 0]
        np.testing.assert_allclose((x - x[0]) / width, [0, 0, 0.5, 0.5, 1], atol=1e-4)
        heights = (y[0] - y) / (y[-1] - y[0])  # of what falls from .5 to .125
        np.testing.assert_allclose(heights, [0, -2 / 3, -2 / 3, -1, -1], atol=1e-4)
    curve = Curve([0.0, 0.1, 0.2], [0.9, 0.8, 0.6], {"lp": [0.9, 0.3, 0.0]})
    save(a_document(entries=[an_entry(curves={"linf": curve})]), tmp_path)
    lines = lines_of((tmp_path / "figures/accuracy-0-linf.svg").read_bytes())
    attacked, proved = (line[:, 1] for line in lines if len(line) == 5)
    shares = (attacked - attacked[0]) / (attacked[-1] - attacked[0])
    np.testing.assert_allclose(shares, [0, 0, 1 / 3, 1 / 3, 1], atol=1e-4)
    shares = (proved - proved[0]) / (proved[-1] - proved[0])
    np.testing.assert_allclose(shares, [0, 2 / 3, 2 / 3, 1, 1], atol=1e-4)


@pytest.fixture
def copied(saved, tmp_path):
    for name in ("report.json", "examples.npz"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def complaint(folder):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is returned
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_folder_or_file_is_named(copied):
    assert "there is no folder" in complaint(copied / "nowhere")
    (copied / "examples.npz").unlink()
    assert "examples.npz" in complaint(copied)
    (copied / "report.json").unlink()
    assert re.search(r"report\.json .* is missing", complaint(copied))


@pytest.mark.parametrize("keep", [0, 1, 0.5, -3])
def test_a_half_written_json_is_refused(copied, keep):
    path = copied / "report.json"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else keep])
    assert "incomplete or damaged" in complaint(copied)


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b"", lambda b: b[:40] + b[41:]])
def test_a_damaged_npz_is_refused(copied, damage):
    path = copied / "examples.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert "sha256 differs" in complaint(copied)


def test_a_bad_zip_is_refused_even_where_the_checksum_was_made_for_it(copied):
    import hashlib

    (copied / "examples.npz").write_bytes(b"PK no zip")
    content = json.loads((copied / "report.json").read_text())
    content["arrays"]["sha256"] = hashlib.sha256(b"PK no zip").hexdigest()
    (copied / "report.json").write_text(json.dumps(content))
    assert "incomplete or damaged" in complaint(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "must be of format 1"),
        (lambda c: c.pop("format"), "got None"),
        (lambda c: c.pop("entries"), "no complete report"),
        (lambda c: c.update(entries=3), "no complete report"),
        (lambda c: c["entries"][0]["reports"][0]["summary"].pop("norm"), "no complete report"),
        (lambda c: c["entries"][0]["curves"][0].pop("eps"), "no complete report"),
    ],
)
def test_a_json_that_says_something_else_is_refused(copied, change, message):
    content = json.loads((copied / "report.json").read_text())
    change(content)
    (copied / "report.json").write_text(json.dumps(content))
    assert message in complaint(copied)


def test_other_json_is_refused(copied):
    (copied / "report.json").write_text("[1, 2]")
    assert "must be of format 1" in complaint(copied)
    (copied / "report.json").write_bytes(b"\xff\xfe\x00")
    assert "incomplete or damaged" in complaint(copied)


class Tags(HTMLParser):
    """Collects tags, and checks that they close in order."""

    VOID = frozenset(("meta", "img", "br", "wbr", "link", "input"))

    def __init__(self, content):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(saved):
    content = (saved / "index.html").read_text()
    outside = r"https?:|[\"\'(]//|@import|@font-face|<script|<link|<iframe"
    assert not re.search(outside, content, re.IGNORECASE)
    assert all(inside.startswith("#") for inside in re.findall(r"url\((.*?)\)", content))
    tags = Tags(content).seen
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))


def test_the_page_is_accessible(saved):
    tags = Tags((saved / "index.html").read_text()).seen
    names = [tag for tag, _ in tags]
    assert dict(tags)["html"]["lang"] == "en"
    assert any(attributes.get("name") == "viewport" for _, attributes in tags)
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")
    assert names.count("h1") == 1
    assert {"main", "nav", "header", "footer", "figure", "figcaption"} <= set(names)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"][1:] for _, attributes in tags if "href" in attributes]
    assert set(targets) <= set(ids)
    levels = [int(name[1]) for name in names if re.fullmatch(r"h\d", name)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_every_accuracy_and_every_doubt_is_shown(saved):
    document, text = a_document(), text_of(saved / "index.html")
    for table in main_tables(document):
        assert table.threat in text
    for entry in document.entries:
        assert entry.name in text
        for report in entry.reports.values():
            values = [report.clean_accuracy, report.robust_accuracy]
            values += [*report.accuracy_after.values(), *report.certified_accuracy.values()]
            for value in values:
                assert " ".join(percent(value).split()) in text
            for low, high in (v for k, v in report.intervals.items() if not k.startswith("under")):
                assert f"{100 * low:.1f}\u2013{100 * high:.1f} %" in text
            for record in report.certificates.values():
                assert record.proof in text
    for words in (
        FINDING.meaning, FINDING.cure,
            "measured 0.12, threshold 0.02", "rows 3, 17", "python -m jaxrobust demo",
        "A short run.", "2025-11-21 05:30 UTC", "[0, 42]", "cpu: fake", "1 finding", "varies",
    ):  # fmt: skip
        assert words in text


def test_attacks_on_all_rows_are_shown_alone(tmp_path):
    text = text_of(save(a_document(entries=[an_entry(a_report(under=True))]), tmp_path))
    report = a_report(under=True)
    for name, value in report.accuracy_under.items():
        assert f"under {name} {percent(value)}".replace("\xa0", " ") in text
        assert f"after {name}" not in text


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '" onload="x', "$\\frac{1}$ _under & <b>", "_a\nb\x07"]
)
def test_names_are_only_ever_text(tmp_path, hostile):
    report = a_report(attacks=(hostile, "b"), certificates=(hostile,))
    report.findings[0] = FINDING._replace(name=hostile, meaning=hostile, cure=hostile)
    report.settings[hostile] = hostile
    curve = Curve([0.0, 0.1], [0.9, 0.5], {hostile: [0.5, 0.1]})
    lines = [{"step": s, "epoch": 0, f"loss {hostile}": 1.0 / s} for s in (1, 2, 3)]
    entry = Entry(hostile, hostile, {hostile: report}, {hostile: curve, "l2": curve}, lines)
    document = Document(hostile, hostile, [entry], [hostile], hostile)
    page = save(document, tmp_path)
    content = page.read_text()
    assert "<script" not in content
    assert "<b>" not in content.replace("<b>What to try.</b>", "").replace("<figcaption><b>", "")
    for _, attributes in Tags(content).seen:
        assert not any(name.startswith("on") for name in attributes)
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())
    assert_same(load(tmp_path), document)
    print_tables(document, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], ["holds no classifier", "No evaluation was run", "No curve was recorded"]),
        ([an_entry()], ["It was not evaluated", "No training was recorded"]),
        (
            [an_entry(a_report(attacks=(), certificates=(), findings=(), kept=0))],
            ["No attack was tried", "No certificate was computed", "raised no doubt",
             "No images were kept"],
        ),
        ([an_entry(a_report(n=1, attacks=(), kept=1))], ["1 image"]),
        ([an_entry(a_report(shape=(7,)))], ["No images were kept"]),
        ([an_entry(a_report(), curves={"linf": Curve([], [], {})})], ["Accuracy against eps"]),
        ([an_entry(a_report(shape=(6, 5, 3)))], ["grey is none"]),
        ([an_entry(a_report(shape=(6, 5)))], ["white is none"]),
        ([an_entry(history=[{"step": 1, "epoch": 0, "eps": 0.1}])], ["No training was recorded"]),
        ([an_entry(a_report(kept=0), name=f"model {i}") for i in range(9)], ["model 8"]),
    ],
)  # fmt: skip
def test_what_is_absent_is_said_in_words(tmp_path, entries, words):
    document = a_document(entries=entries, notes=[])
    text = text_of(save(document, tmp_path))
    Tags((tmp_path / "index.html").read_text())
    for word in words:
        assert word in text
    print_tables(document, Console(file=io.StringIO()))


def test_the_gallery_shows_broken_images_first():
    shown = gallery(a_report())
    outcomes = [tile.outcome for tile in shown.tiles]
    assert outcomes == ["broken by zeta"] * 2 + ["broken by alpha"] * 2 + ["held"] * 2
    assert len(outcomes) == MOST_TILES < shown.num_images
    assert shown.scale == 0.1
    first = shown.tiles[0]
    assert (first.row, first.label, first.prediction, first.attacked_prediction) == (3, 3, 3, 6)
    # No change is the middle of the map, and its two ends are the two signs.
    change = a_report().images["adversarial"][3] - a_report().images["clean"][3]
    red, _, blue = np.moveaxis(first.change.astype(int), -1, 0)
    assert np.all((red > blue) == (change[..., 0] > 0))


def test_percentages_never_round_to_all_or_none():
    assert percent(1.0) == "100.0\xa0%"
    assert percent(0.0) == "0.0\xa0%"
    assert percent(0.99999, 10_000) == "99.99\xa0%"
    assert percent(float("nan")) == "unknown"


def test_the_terminal_shows_the_same_numbers():
    out = io.StringIO()
    document = a_document()
    print_tables(document, Console(file=out, width=120))
    text = out.getvalue()
    for table in main_tables(document):
        after = text.partition(table.threat)[2]
        for row in table.rows:
            label = f"certified {row.label}" if row.group == CERTIFIED else row.label
            (line, *_) = (line for line in after.splitlines() if line.startswith(label))
            for cell in row.cells:
                words = "\u2013" if cell is None else f"{cell.value}  {cell.interval}"
                assert words.replace("\xa0", " ") in line
    assert "one_step_beats_many" in text
    assert "Run square as well." in text


def test_importing_the_report_loads_no_drawing_library():
    code = (
        "import sys, jaxrobust.report; "
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'drawing library loaded'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
