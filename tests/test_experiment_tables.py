"""Every table of an experiment has its place in the experiment's README."""

import importlib
from pathlib import Path

import pytest

from experiments import records

ROOT = Path(records.__file__).parent


@pytest.mark.parametrize(
    "name",
    [
        "adversarial_training",
        "carlini_wagner",
        "gradient_masking",
        "madry_mnist",
        "neural_ode",
        "pdm",
        "second_order",
        "spatial",
    ],
)
def test_tables_find_their_places(name, tmp_path):
    tables = importlib.import_module(f"experiments.{name}.tables").tables(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / name / "README.md").read_text())
    records.show(tables, readme, "cpu")
    written = readme.read_text()
    assert all(table in written for table in tables.values())
