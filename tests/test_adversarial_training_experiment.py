"""Every recipe of the table makes an objective, and it takes a finite step."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxrobust as jr
from experiments.adversarial_training import config, published, speed, train
from experiments.adversarial_training.evaluate import COMBINED, SOURCES, measurements

ONE_STEP = {
    "mnist": ("free", "yopo-5-10", "trades", "mma", "bilateral", "madry 0.3 + jacobian"),
    "cifar10": ("r-mc-ls",),
}
"""A recipe of each kind; the others are made of the same parts, with other numbers."""

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
            steps = train.num_steps(name, data, preset)
            assert steps >= setting.num_epochs >= 1
            train.optimizer(setting, steps)
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
