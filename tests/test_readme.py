"""What the README shows of attacks runs as it stands there."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrobust as jr
from jaxrobust.layers import Dense, Flatten, Relu

README = Path(__file__).parents[1] / "README.md"


def linear(seed):
    kernel = np.random.default_rng(seed).normal(size=(16, 10)).astype(np.float32)
    return jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(kernel))


def test_the_examples_of_attacks_run():
    section = README.read_text().split("\n### Attacks\n")[1].split("\n### ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 5
    logits_fn = linear(0)
    x = np.random.default_rng(1).uniform(size=(2, 4, 4, 1)).astype(np.float32)
    y = np.asarray(logits_fn(x)).argmax(-1)
    names = {
        "functools": functools, "jax": jax, "jnp": jnp, "np": np, "jr": jr,
        "logits_fn": logits_fn, "source_logits_fn": linear(2), "x": x, "y": y,
        "ball": jr.Ball("linf", 8 / 255), "key": jax.random.key(0),
    }  # fmt: skip
    for block in blocks:
        for long, short in (("spsa(64)", "spsa(4)"), ("eot(20)", "eot(2)"), ("=2000", "=200")):
            block = block.replace(long, short)
        exec(block, names)
        assert "report" not in names or names["report"].findings == []
    assert (np.asarray(logits_fn(names["x_near"])).argmax(-1) != y).all()
    contrast = names["watched"](names["x_near"])[1]
    assert (np.asarray(contrast) <= 0.9).all()


def test_the_example_of_detectors_runs():
    section = README.read_text().split("\n### Detectors\n")[1].split("\n### ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    logits_fn, rng = linear(0), np.random.default_rng(1)
    x_train, x_val, x = (
        rng.uniform(size=(n, 4, 4, 1)).astype(np.float32) for n in (400, 200, 8)
    )  # fmt: skip
    names = {
        "x": x,
        "y": np.asarray(logits_fn(x)).argmax(-1), "key": jax.random.key(0),
        "x_train": x_train, "y_train": np.arange(400) % 10, "x_val": x_val,
        "y_val": np.asarray(logits_fn(x_val)).argmax(-1), "ball": jr.Ball("linf", 8 / 255),
    }  # fmt: skip
    exec(re.search(r"^import .*jaxrobust as jr$", README.read_text(), re.MULTILINE)[0], names)
    exec(blocks[0].replace("num_epochs=3", "num_epochs=1"), names)
    assert [leaf.shape for leaf in names["model"](x)] == [(8, 10), (8, 64)]
    names["model"] = lambda x: (logits_fn(x), x.reshape(len(x), -1))  # quick to attack
    exec(blocks[1].replace("num_steps=500, num_searches=3", "num_steps=50, num_searches=1"), names)
    assert [finding.severity for finding in names["report"].findings] == ["note"]  # C&W's norm
    assert names["found"].false_positive_rate is not None
    assert set(names["found"].detection_rate) == {"pgd", "densest", "C&W-wb"}


def test_the_example_of_training_methods_runs():
    section = README.read_text().split("\n#### Methods of training\n")[1].split("\n#### ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for long, short in (
        ("conv_small()", "conv_small((2, 3, 4))"), ("num_epochs=10, batch_size=128", "**FEW"),
        ("num_steps=10", "num_steps=2"),
    ):  # fmt: skip
        assert long in block
        block = block.replace(long, short)
    x = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype(np.float32)
    y = np.arange(8) % 10
    names = {
        "functools": functools, "jax": jax, "jnp": jnp, "jr": jr, "optax": optax,
        "ball": jr.Ball("linf", 0.3), "key": jax.random.key(0), "x": x, "y": y, "x_val": x,
        "y_val": y, "FEW": {"num_epochs": 1, "batch_size": 4},
    }  # fmt: skip
    exec(block, names)
    assert 0 <= float(names["fitted"].best.value) <= 1
    for method in names["methods"].values():
        assert isinstance(method, jr.Objective)


def test_the_example_of_flows_runs():
    section = README.read_text().split("\n### Images that are bent\n")[1].split("\n### ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    block = block.replace("(28, 28)", "(7, 7)")  # as quick to test as it is to read
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in ((49, 6), (6, 3))]
    first, last = (Dense(kernel, np.zeros(kernel.shape[1], np.float32)) for kernel in kernels)
    layers = [Flatten(), first, Relu(), last]
    logits_fn = jax.tree_util.Partial(jr.layers.apply, jax.tree.map(jnp.asarray, layers))
    x = rng.uniform(size=(4, 7, 7, 1)).astype(np.float32)
    names = {
        "functools": functools, "jr": jr, "x": x, "key": jax.random.key(0), "layers": layers,
        "logits_fn": logits_fn, "y": np.asarray(logits_fn(x)).argmax(-1),
    }  # fmt: skip
    exec(block, names)
    assert (np.asarray(logits_fn(names["x_adv"])).argmax(-1) != names["y"]).any()
    assert names["report"].certified_accuracy["spatial"] <= names["report"].robust_accuracy


def test_the_example_of_neural_odes_runs():
    section = README.read_text().split("\n### Neural ODEs\n")[1].split("\n### ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert "num_epochs=8, batch_size=16" in block
    block = block.replace("num_epochs=8, batch_size=16", "num_epochs=1, batch_size=4")
    x = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype(np.float32)
    y = np.arange(8) % 10
    names = {
        "functools": functools, "jax": jax, "jr": jr, "optax": optax, "key": jax.random.key(0),
        "x_train": x, "y_train": y,
    }  # fmt: skip
    exec(block.replace("(16", "(4").replace("    16,", "    4,"), names)
    assert names["logits_fn"](x).shape == (8, 10)
    assert names["resized"](jnp.asarray(x), names["key"]).shape == (8, 10)
    assert names["done"].metrics[0]["drift"] > 0
