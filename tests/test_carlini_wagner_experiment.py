"""The experiment's tables: only of the networks that are kept, and orders on common images."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxrobust as jr
from experiments import records
from experiments.carlini_wagner import config, measure, tables, train
from jaxrobust.identity import digest


def test_best_average_and_worst_case():
    found = {"success": np.array([1, 1, 1, 0]) > 0, "l2": np.array([3.0, 1.0, 2.0, 9.0])}
    np.testing.assert_array_equal(measure.cases(found, "l2", 1)["average"], [3, 1, 2, np.nan])
    of = measure.cases(found, "l2", 2)
    np.testing.assert_array_equal(of["best"], [1, 2])
    np.testing.assert_array_equal(of["worst"], [3, np.nan])
    told = measure.summary(of)["worst"]
    assert (told["mean"], told["probability"], told["num"]) == (3.0, 0.5, 2)


@pytest.fixture(name="folder")
def folder_of_records(tmp_path):
    """JSMA-F on two images and l0 on one, JSMA-Z on two; and an l2 record of other weights."""
    folder = tmp_path / "cpu"
    folder.mkdir()
    variables = train.model_of("mnist").init(jax.random.key(0), np.zeros((1, 28, 28, 1)))
    jr.files.write_arrays(folder / "mnist-natural.npz", flatten_dict(variables, sep="/"))
    far = {"l0": [2], "JSMA-F": [3, 1], "JSMA-Z": [4, -1], "l2": [1]}
    for name, distances in far.items():
        about = {
            "name": f"mnist table 4 average {name}", "network": "mnist natural", "targets": "one",
            "weights": "0" * 16 if name == "l2" else digest(variables),
        }  # fmt: skip
        rows = {"success": np.array(distances) >= 0, "l0": np.array(distances)}
        numbers = measure.summary(measure.cases(rows, "l0", 1))
        numbers["all"] = dict.fromkeys(("l0", "l2", "linf"), distances)
        make = functools.partial(dict, numbers)
        records.keep(folder / f"{name}.json", about, make, "")
    return folder


def test_orders_are_of_common_images_and_of_the_kept_network(folder):
    shown = tables.tables(folder)
    assert "| l0 |  | 8.5, 100 | 2, 100 (1) |" in shown["table 4 mnist"]
    assert "| l2 |  | 1.36, 100 |  | 1.76, 100 |" in shown["table 4 mnist"]
    order = "| l0 < JSMA-F < JSMA-Z | in each case | average (average: 2, 3, 4 on 1) |"
    assert order in shown["targets"]


def test_an_attack_that_fails_more_often_is_not_the_better_one():
    nan = np.nan
    assert tables._in_order(np.array([[1.0, 2.0], [2.0, nan], [3.0, nan]]))
    assert not tables._in_order(np.array([[1.0, nan], [2.0, 2.0]]))
    assert not tables._in_order(np.array([[2.0, 2.0], [1.0, 2.5]]))


def test_the_common_start_of_distillation_has_no_temperature(monkeypatch, tmp_path):
    """As in the released code; at a temperature of 100 one epoch leaves a network at chance."""
    seen = []
    objective = jr.objectives.cross_entropy
    monkeypatch.setattr(
        jr.objectives, "cross_entropy", lambda f, **kw: seen.append(kw) or objective(f, **kw)
    )
    monkeypatch.setattr(jr.train, "fit", lambda *args, **kw: None)
    monkeypatch.setattr(train, "_restored", lambda folder: None)
    images = jr.data.Dataset(np.zeros((10, 28, 28, 1), np.float32), np.zeros(10, int), 10)
    monkeypatch.setattr(jr.data, "load", lambda *args: images)
    train.train("mnist", "initial", "cpu", tmp_path, 0)
    train.train("mnist", "teacher", "cpu", tmp_path, 0)
    assert [one["temperature"] for one in seen] == [1.0, config.TEMPERATURE]
