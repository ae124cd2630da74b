"""Every recipe of the table makes an objective, and it takes a finite step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from experiments import records
from experiments.adversarial_training import (
    choose,
    config,
    evaluate,
    figures,
    measure,
    published,
    speed,
    tables,
    train,
)
from experiments.adversarial_training.evaluate import COMBINED, measurements
from experiments.adversarial_training.measure import SOURCES
from experiments.adversarial_training.place import Place

ONE_STEP = {
    "mnist": ("free", "yopo-5-10", "trades", "mma", "bilateral", "madry 0.3 + jacobian"),
    "cifar10": ("r-mc-ls",),
}
"""A recipe of each kind; the others are made of the same parts, with other numbers."""

FOUR = config.Sizes(4, 4, 4, 4, 4, 4, True, 4, 4, 4, 4)
"""Of everything."""

CASES = [(data, name) for data, names in ONE_STEP.items() for name in names]


@pytest.mark.parametrize(("data", "name"), CASES)
def test_recipes_take_a_finite_step(data, name, monkeypatch):
    tiny = {"model": "conv_small", "batch_size": 3}
    monkeypatch.setitem(config.CPU, data, dataclasses.replace(config.CPU[data], **tiny))
    few = {
        "num_steps": min(config.RECIPES[data][name].num_steps, 2), "widths": (2, 3, 4),
        "passes": min(config.RECIPES[data][name].passes, 2),
    }  # fmt: skip
    recipe = dataclasses.replace(config.RECIPES[data][name], **few)
    monkeypatch.setitem(config.RECIPES[data], name, recipe)
    step, state, batch = speed._prepared(name, data, "cpu")
    after = step(state, batch)
    moved = jax.tree.map(lambda old, new: jnp.any(old != new), state[0], after[0])
    assert all(map(bool, jax.tree.leaves(moved)))
    for leaf in jax.tree.leaves(after):
        assert bool(jnp.all(jnp.isfinite(leaf)))


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_every_recipe_has_a_network_and_a_schedule(data):
    networks = set()
    for preset in config.SIZES:
        for name, recipe in config.RECIPES[data].items():
            setting = config.setting(name, data, preset)
            steps = train.num_steps(recipe, setting, data)
            assert steps >= setting.num_epochs >= 1
            train.optimizer(recipe, setting, steps)
            networks.add((setting.model, recipe.widths))
    for model, widths in networks:
        x = jax.ShapeDtypeStruct((2, *config.SHAPES[data]), jnp.float32)
        jax.eval_shape(train.module(model, widths).init, jax.random.key(0), x)


def test_gradients_are_counted_by_hand():
    counted = {name: train.gradients(recipe) for name, recipe in config.MNIST.items()}
    assert counted["natural"] == 1
    assert counted["fgsm"] == counted["fast"] == 2
    assert counted["free"] == 8
    assert counted["pgd-40"] == 41
    assert counted["yopo-5-10"] == 6
    assert counted["madry 0.3 + jacobian"] == 11 + 2


def test_tables_speak_of_what_there_is():
    for data in ("mnist", "cifar10"):
        known = {*config.RECIPES[data], *config.ENSEMBLES[data]}
        assert {*COMBINED[data], *SOURCES[data]} <= known
        assert {name for _, name in measurements(data).values()} <= known
        assert {name for one, name in published.AUTOATTACK if one == data} <= known
        for members in config.ENSEMBLES[data].values():
            assert {*members} <= known
    assert {*published.YOPO_MNIST} <= {*config.MNIST}
    printed = {*published.YOPO_CIFAR10, *published.MMA_CIFAR10, *published.BILATERAL}
    assert printed <= {*config.CIFAR10, *config.ENSEMBLES["cifar10"]}


@pytest.mark.parametrize("name", ["yopo-5-3", "r-mc-la"])
def test_networks_with_batch_statistics_take_a_finite_step(name, monkeypatch):
    network = jr.models.PreActResNet((2, 3), num_units=1)
    monkeypatch.setattr(jr.models, "tiny_resnet", lambda: network, raising=False)
    setting = dataclasses.replace(config.CPU["cifar10"], model="tiny_resnet", batch_size=3)
    monkeypatch.setitem(config.CPU, "cifar10", setting)
    recipe = dataclasses.replace(config.CIFAR10[name], passes=2)
    monkeypatch.setitem(config.CIFAR10, name, recipe)
    step, state, batch = speed._prepared(name, "cifar10", "cpu")
    params, model_state, *_ = step(state, batch)
    for leaf in jax.tree.leaves((params, model_state)):
        assert bool(jnp.all(jnp.isfinite(leaf)))
    assert bool(jnp.any(jax.tree.leaves(model_state)[0] != jax.tree.leaves(state[1])[0]))


def test_networks_are_trained_measured_and_told(tmp_path, monkeypatch):
    """Every measurement of two networks on a few images of noise, the figures and the tables."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(32, 28, 28, 1)).astype(np.float32)
    images = jr.data.Dataset(x, np.arange(32, dtype=np.int32) % 10, 10)
    monkeypatch.setattr(jr.data, "load", lambda name, split: images)
    monkeypatch.setitem(config.IMAGES, "mnist", len(x))
    few = functools.partial(jr.attacks.pgd, num_steps=2)
    monkeypatch.setattr(jr.attacks, "autoattack_members", lambda *_: {"pgd": few})
    monkeypatch.setattr(config, "SIZES", config.SIZES | {"cpu": FOUR})
    monkeypatch.setitem(config.RADII, "mnist", (0.1, 0.3))
    monkeypatch.setitem(config.ENSEMBLES, "mnist", {"ensemble": ("natural", "pgd-40")})
    setting = dataclasses.replace(config.CPU["mnist"], num_epochs=1, batch_size=16)
    monkeypatch.setitem(config.CPU, "mnist", setting)
    names = ("natural", "pgd-40", "madry x1")
    recipes = {
        name: dataclasses.replace(config.MNIST[name], num_steps=2, widths=(2, 3, 4))
        for name in names
    }
    monkeypatch.setitem(config.RECIPES, "mnist", recipes)
    monkeypatch.setitem(measure.SOURCES, "mnist", ("pgd-40",))
    monkeypatch.setitem(evaluate.COMBINED, "mnist", ("natural",))
    monkeypatch.setitem(evaluate.TABLE, "mnist", ("natural", "ensemble"))
    monkeypatch.setattr(evaluate, "CAPACITY", ("madry x1",))
    monkeypatch.setattr(evaluate, "STARTS", ("pgd-40",))
    monkeypatch.setitem(measure.MARGIN_RADII, "mnist", (0.1,))
    monkeypatch.setitem(measure.MARGIN_STEPS, "mnist", 2)
    full = measure.attacks_of
    monkeypatch.setattr(
        measure, "attacks_of", lambda data, kind, *_: dict.fromkeys(full(data, kind), few)
    )
    place = Place(tmp_path / "runs", tmp_path / "results", "cpu", "mnist", "test", 0)
    evaluate.record(place)  # nothing is trained: only costs
    assert [path.name for path in place.folder.iterdir()] == ["speed.json"]
    for name in names:
        train.network(name, "mnist", "cpu", place.out)
    evaluate.record(place)
    found = {name: content["found"] for name, content in records.read(place.folder).items()}
    assert found.keys() == {
        "speed", *(f"history {name}" for name in names), "table natural", "table ensemble",
        "margins natural", "margins ensemble", "capacity madry x1", "starts pgd-40",
        "whole natural", "whole ensemble",
        "combined natural", "restarts natural", "restarts ensemble", "autoattack natural",
        "autoattack ensemble",
    }  # fmt: skip
    subject = place.subject("natural")
    right = np.argmax(subject(images.x[:4]), -1) == images.y[:4]
    assert found["table natural"]["clean"] == right.mean()
    for name in ("table natural", "combined natural", "restarts natural"):
        of = found[name]
        assert of["clean"] >= of["worst case"]["0.1"] >= of["worst case"]["0.3"]
    assert {"CE x5 at 0.1", "CW from pgd-40 at 0.3"} <= found["combined natural"]["accuracy"].keys()
    assert found["history pgd-40"]["validation"][-1]["step"] == 2
    assert 0 <= found["margins natural"]["mean"] <= 1
    bits = tables.right(found, "natural")
    assert bits is not None
    assert bits.mean() == found["whole natural"]["accuracy"]
    assert bits.shape == (4,)
    kept = (place.folder / "table-natural.json").read_text()
    evaluate.record(place)
    assert (place.folder / "table-natural.json").read_text() == kept
    monkeypatch.setitem(config.RADII, "mnist", (0.2, 0.3))  # another setting, another number
    evaluate.record(place, ("table natural",))
    assert (place.folder / "table-natural.json").read_text() != kept
    for wrong in ("pgd-400", "table pgd-400"):
        with pytest.raises(ValueError, match=f"--only must name .* got {wrong}"):
            evaluate.record(place, (wrong,))
    one = {"rate": config.Choice("natural", (2e-3,), 0.1)}
    monkeypatch.setattr(choose, "CHOICES", one)
    monkeypatch.setattr(config, "CHOICES", one)
    choose.record(dataclasses.replace(place, split="held-out"))
    figures.draw(place.folder)
    assert {path.name for path in place.folder.glob("*.svg")} == {
        "accuracy-time.svg", "training-loss.svg", "starts.svg", "capacity.svg", "radii.svg",
    }  # fmt: skip
    shown = tables.tables(place.folder.parent)
    assert f" | {100 * right.mean():.1f} |" in shown["methods mnist"]
    assert "| rate | 0.002 | " in shown["choices"]
    setting = dataclasses.replace(setting, rate=1.0)
    monkeypatch.setitem(config.CPU, "mnist", setting)
    for use in (place.network, lambda name: train.network(name, "mnist", "cpu", place.out)):
        with pytest.raises(ValueError, match=r"of other settings: .* differs in rate"):
            use("natural")
    assert shown["methods cifar10"].count("\n") == 2 + len(config.CIFAR10)
