"""The tables of an experiment's README: each has its place, and says what is recorded."""

import importlib
from pathlib import Path

import pytest

import jaxrobust as jr
from experiments import records

ROOT = Path(records.__file__).parent
FOLDERS = {
    "adversarial_training": "cpu/test",
    "carlini_wagner": "cpu",
    "gradient_masking": "cpu",
    "madry_mnist": "cpu/rows",
    "neural_ode": "cpu",
    "pdm": "cpu",
    "second_order": "cpu/test",
    "spatial": "cpu/test",
}
"""Where the numbers of a README's tables are, in the experiment's results."""

every = pytest.mark.parametrize("name", FOLDERS)


def tables_of(name, folder):
    return importlib.import_module(f"experiments.{name}.tables").tables(folder)


@every
def test_tables_find_their_places(name, tmp_path):
    folder = tmp_path / "cpu"
    tables = tables_of(name, folder)
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / name / "README.md").read_text())
    records.show(tables, readme, "cpu")
    written = readme.read_text()
    assert all(table in written for table in tables.values())


@every
def test_readmes_say_what_is_recorded(name):
    tables = tables_of(name, ROOT / name / "results" / FOLDERS[name])
    written = (ROOT / name / "README.md").read_text()
    for title, table in tables.items():
        assert f"<!-- {title} -->\n{table}<!-- end -->" in written, title


@pytest.mark.parametrize(("weights", "shown"), [("a", True), ("b", False)])
def test_madry_shows_one_set_of_weights(tmp_path, weights, shown):
    found = {"clean": 1.0, "FGSM": 0.5, "PGD-40": 0.5, "PGD-100 x5": 0.5, "worst case": 0.5}
    white_box = {name: found | {"weights": "a"} for name in ("natural", "adversarial")}
    jr.files.write_json(tmp_path / "results.json", {"measured": white_box, "num_test": 10})
    (tmp_path / "rows").mkdir()
    row = {
        "name": "table mnist Targeted", "network": "mnist A", "weights": weights, "num_images": 10,
        "found": {"accuracy": {"0.3": 0.4}},
    }  # fmt: skip
    jr.files.write_json(tmp_path / "rows/row.json", row)
    tables = tables_of("madry_mnist", tmp_path / "rows")
    assert "| Targeted | A | 10 | 40.0 |" in tables["table mnist"]
    assert ("| clean |" in tables["white box"]) == shown
