"""stAdv on MNIST: a batch in one program against one image at a time through SciPy's L-BFGS-B."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.tree_util import Partial

import jaxrobust as jr
from benchmarks._clock import Row, round_robin
from jaxrobust.attacks._box_descent import adam_start, adam_step
from jaxrobust.flow import smoothed, total_variation, warp

TAU = 0.05


@dataclasses.dataclass(frozen=True)
class Setting:
    """A naturally trained network 784-512-10, and images that it gets right.

    Attributes:
        batch_size: Images attacked.
        num_steps: Gradients an image, of every contender.
        num_epochs: Of training the network.
        seed: Of the network and of the flows' starts.
    """

    batch_size: int = 100
    num_steps: int = 200
    num_epochs: int = 3
    seed: int = 0

    @functools.cached_property
    def logits_fn(self) -> Partial:
        """The network."""
        model, key = jr.models.mlp((512,)), jax.random.key(self.seed)
        data = jr.data.load("mnist", "train")
        objective = jr.objectives.cross_entropy(jr.objectives.from_module(model.apply))
        params = model.init(key, jnp.asarray(data.x[:1]))["params"]
        fitted = jr.train.fit(
            objective, params, optax.adam(1e-3), (data.x, data.y), key=key,
            num_epochs=self.num_epochs, batch_size=100,
        )  # fmt: skip
        return Partial(model.apply, {"params": fitted.params})

    @functools.cached_property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Test images that the network gets right; settings were chosen on the first thousand."""
        test = jr.data.load("mnist", "test[1000:2000]")
        right = np.argmax(self.logits_fn(test.x), -1) == test.y
        return test.x[right][: self.batch_size], test.y[right][: self.batch_size]


def objective(
    logits_fn: Partial, smooth: bool, x: Any, y: Any, variable: Any
) -> tuple[Any, tuple[Any, Any, Any]]:
    """The objective of a flow, or of what `flow.smoothed` makes one of; and what it judges."""
    shape = (*x.shape[:2], 2)
    variable = variable.reshape(shape)
    unit = jnp.max(smoothed(jnp.ones(shape)))
    flow = smoothed(variable) / unit if smooth else variable
    margin = jr.losses.margin(logits_fn(warp(x, flow)[None])[0], y)
    variation = total_variation(flow)
    return jnp.maximum(-margin, 0) + TAU * variation, (flow, margin > 0, variation)


def one_at_a_time(setting: Setting, smooth: bool, evaluations: int) -> Any:
    """Flows by SciPy's L-BFGS-B; of those that it looks at and that succeed, the best."""
    x, y = setting.batch
    starts = np.random.default_rng(setting.seed).uniform(size=(len(x), 28 * 28 * 2))
    value_and_grad = compiled(setting, smooth)
    found = []
    for image, label, start in zip(jnp.asarray(x), jnp.asarray(y), starts, strict=True):
        best = [np.inf, np.zeros((28, 28, 2), np.float32)]

        def both(variable: Any, image: Any = image, label: Any = label, best: Any = best) -> Any:
            (value, (flow, success, variation)), slope = value_and_grad(
                image, label, jnp.asarray(variable, jnp.float32)
            )
            if success and variation < best[0]:
                best[:] = [float(variation), np.asarray(flow)]
            return float(value), np.asarray(slope, np.float64)

        scipy.optimize.minimize(
            both, start, jac=True, method="L-BFGS-B",
            options={"maxcor": 20, "ftol": 10 * np.finfo(float).eps, "maxfun": evaluations},
        )  # fmt: skip
        found.append(best[1])
    return jnp.asarray(np.stack(found))


@functools.cache
def compiled(setting: Setting, smooth: bool) -> Callable[..., Any]:
    """The same loss and gradient for one image, compiled."""
    of_flow = functools.partial(objective, setting.logits_fn, smooth)
    return jax.jit(jax.value_and_grad(of_flow, argnums=2, has_aux=True))


def first_order(setting: Setting) -> Callable[[], Any]:
    """Adam on the flow itself, in the batch; its learning rate the best of .02, .05 and .1."""
    x, y = (jnp.asarray(part) for part in setting.batch)

    @jax.jit
    def run(logits_fn: Partial, x: Any, y: Any, keys: Any) -> Any:
        def one(x: Any, y: Any, key: Any) -> Any:
            of_flow = functools.partial(objective, logits_fn, False, x, y)
            start = jax.random.uniform(key, (28, 28, 2))

            def step(state: Any, t: Any) -> tuple[Any, None]:
                flow, adam, best, least = state
                slope, (_, success, variation) = jax.grad(of_flow, has_aux=True)(flow)
                better = success & (variation < least)
                best = jnp.where(better, flow, best), jnp.where(better, variation, least)
                adam, move = adam_step(adam, slope, 0.1)
                return (flow - (1 - t / setting.num_steps) * move, adam, *best), None

            state = start, adam_start(start), jnp.zeros_like(start), jnp.inf
            return jax.lax.scan(step, state, jnp.arange(setting.num_steps))[0][2]

        return jax.vmap(one)(x, y, keys)

    keys = jax.random.split(jax.random.key(setting.seed), len(x))
    return lambda: run(setting.logits_fn, x, y, keys)


def contenders(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Ours; SciPy on our variable and on the flow, as published; and the first-order baseline."""
    steps = setting.num_steps
    return {
        "attacks.flow_field": lambda: ours(setting, steps),
        "scipy L-BFGS-B, same variable": lambda: one_at_a_time(setting, True, steps),
        "scipy L-BFGS-B, on the flow": lambda: one_at_a_time(setting, False, steps),
        "Adam on the flow, batched": first_order(setting),
    }


def to_the_end(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Ours and SciPy's, with many more gradients."""
    steps = setting.num_steps
    return {
        f"attacks.flow_field, {5 * steps}": lambda: ours(setting, 5 * steps),
        f"scipy L-BFGS-B, same variable, {15 * steps}": lambda: one_at_a_time(
            setting, True, 15 * steps
        ),
    }


def ours(setting: Setting, num_steps: int) -> Any:
    """Flows of the library's attack."""
    x, y = (jnp.asarray(part) for part in setting.batch)
    key = jax.random.key(setting.seed)
    return jr.attacks.flow_field(setting.logits_fn, x, y, key=key, tau=TAU, num_steps=num_steps)


def quality(setting: Setting, flows: Any) -> dict[str, float]:
    """Share of images broken, and total variation of the flow at quantiles of all images.

    A failure counts as infinite, so that none looks smooth by leaving the hard images out.
    """
    x, y = (jnp.asarray(part) for part in setting.batch)
    images = jnp.clip(jax.vmap(warp)(x, flows), 0, 1)
    broken = np.asarray(jnp.argmax(setting.logits_fn(images), -1) != y)
    variations = np.where(broken, np.asarray(jax.vmap(total_variation)(flows)), np.inf)
    quantiles = np.quantile(variations, (0.25, 0.5, 0.75), method="higher")
    names = ("variation_25", "variation_50", "variation_75")
    return {"success": float(np.mean(broken))} | dict(
        zip(names, map(float, quantiles), strict=True)
    )


def measure(setting: Setting, rounds: int) -> dict[str, list[Row]]:
    """The tables."""
    fewer = dataclasses.replace(setting, batch_size=min(setting.batch_size, 25))
    return {
        f"{one.batch_size} images, {title}": round_robin(
            runs(one), functools.partial(quality, one), rounds
        )
        for one, title, runs in (
            (setting, f"{setting.num_steps} gradients at most", contenders),
            (fewer, "to the end", to_the_end),
        )
    }


@pytest.fixture(scope="module")
def small() -> Setting:
    """Enough to show that all run; too little to time them by."""
    return Setting(batch_size=6, num_steps=60, num_epochs=1)


def test_flow(benchmark: Any, small: Setting) -> None:
    """Ours succeeds wherever SciPy or the first-order baseline does, by smoother flows."""
    runs = contenders(small)
    flows = benchmark.pedantic(
        lambda: jax.block_until_ready(runs["attacks.flow_field"]()), rounds=3, warmup_rounds=1
    )
    found = quality(small, flows)
    for name in list(runs)[1:]:
        theirs = quality(small, runs[name]())
        assert found["success"] >= theirs["success"], name
    adam = quality(small, runs["Adam on the flow, batched"]())
    assert found["variation_50"] < adam["variation_50"]
