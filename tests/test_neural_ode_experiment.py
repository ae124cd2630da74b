"""The experiment on colour images of a stub, from training to the tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from experiments.neural_ode import config, evaluate, tables, train


def test_colour_images_are_trained_measured_and_told(tmp_path, monkeypatch):
    data, loaded = "imgnet10", []

    def load(name, split, size=None):
        loaded.append((name, split, size))
        rng = np.random.default_rng(len(loaded))
        x = rng.uniform(size=(128, 12, 12, 3)).astype(np.float32)
        return jr.data.Dataset(x, np.arange(128, dtype=np.int32) % 10, 10)

    monkeypatch.setattr(jr.data, "load", load)
    tiny = dataclasses.replace(config.PRESETS["smoke"], images=128)
    monkeypatch.setitem(config.PRESETS, "smoke", tiny)
    place = evaluate.Place(tmp_path / "runs", tmp_path / "results", "smoke")
    train.network(data, "cnn", "smoke", place.out, 0)
    monkeypatch.setattr(evaluate, "strong", lambda *_: {})
    for name in ("cnn", "tisode"):  # the other is not trained
        evaluate.record(place, data, name, 0)
    source, size = config.DATA[data].source, config.DATA[data].size
    assert {one[::2] for one in loaded} == {(source, size)}
    splits = {split for _, split, _ in loaded}
    assert splits == {"train[:128]", f"train[-{config.DATA[data].held_out}:]", "validation"}
    shown = tables.tables(place.folder)
    row = next(line for line in shown[f"tables 2 to 4 {data}"].splitlines() if "cnn |" in line)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert len(cells) == 6
    assert all(0 <= float(cell) <= 100 for cell in cells)
    assert "| paper |  | 92.6 ± 0.6 | 40.9 ± 1.8 |" in shown[f"tables 2 to 4 {data}"]


def test_a_slope_is_held_against_a_difference_of_the_margin():
    x = np.random.default_rng(0).uniform(size=(4, 3, 3, 1)).astype(np.float32)
    y, w = np.zeros(4, int), np.random.default_rng(1).normal(size=(9, 2))
    linear = lambda x: x.reshape(len(x), -1) @ w
    assert evaluate._off(linear, x, y) < 1e-3
    doubled = jr.gradients.bpda(linear, lambda x: 2 * linear(x))
    assert evaluate._off(doubled, x, y) == pytest.approx(0.5, abs=1e-3)
    stuck = lambda x: jnp.where(x[:, 0, 0] > 0.5, linear(x), jax.lax.stop_gradient(linear(x)))
    assert evaluate._off(stuck, x, y) < 1e-3  # of those that move
    assert np.isnan(evaluate._off(lambda x: jnp.zeros((len(x), 2)), x, y))


def test_a_row_without_a_class_is_wrong():
    broken = lambda x: jnp.where(x[:, 0, 0] > 0.5, jnp.array([1.0, 0.0]), jnp.nan)
    x = np.array([0.0, 1.0, 1.0, 0.0], np.float32).reshape(4, 1, 1, 1)
    assert evaluate._accuracy(broken, x, np.zeros(4, int)) == 0.5
