"""Train one network of the experiment; a run that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import PyTree

import jaxrobust as jr
from experiments import records
from experiments.adversarial_training import config
from experiments.adversarial_training.config import HELD_OUT, RECIPES, Recipe, Setting
from jaxrobust.types import Attack

VALIDATION = {"mnist": (40, 0.01), "cifar10": (20, 2 / 255)}
"""Steps and step size of PGD on held-out images, YOPO's evaluation of each data set."""


class Model(NamedTuple):
    """A network, and how objectives call it; `frozen` is None where it has no state."""

    module: Any
    forward: jr.objectives.Forward
    frozen: jr.objectives.Forward | None


@functools.cache  # one module of a kind, so that networks share compiled programs
def module(name: str, widths: tuple[int, int, int] | None = None) -> Any:
    """The module of a setting's network."""
    if name == "conv_small" and widths is not None:
        return jr.models.conv_small(widths)
    return getattr(jr.models, name)()


@functools.cache
def apply(name: str, widths: tuple[int, int, int] | None = None) -> Callable[..., Any]:
    """Its function, frozen."""
    return module(name, widths).apply


def start(name: str, widths: Any, key: Any, shape: tuple[int, ...]) -> tuple[Model, PyTree, PyTree]:
    """A network, its first parameters and its state."""
    network = module(name, widths)
    state = dict(network.init(key, jnp.zeros((1, *shape))))
    params = state.pop("params")
    if not state:
        return Model(network, jr.objectives.from_module(network.apply), None), params, state
    return Model(network, *jr.objectives.from_stateful_module(network.apply)), params, state


def folder_of(name: str, data: str, preset: str, out: Path) -> Path:
    """Where a network's run lives."""
    return out / preset / data / name.replace(" ", "-").replace("*", "-star")


def weight(recipe: Recipe, setting: Setting) -> float:
    """Of the regulariser."""
    return setting.weights.get(recipe.regulariser, recipe.weight)


def settings(recipe: Recipe, setting: Setting) -> dict[str, Any]:
    """All that a training depends on besides its seed and code."""
    own = dataclasses.asdict(recipe) | dataclasses.asdict(setting)
    own |= {"weight": weight(recipe, setting)}
    del own["weights"], own["rates"]
    return own


def same(folder: Path, recipe: Recipe, setting: Setting, seed: int) -> dict[str, Any]:
    """What a folder says of its training: all settings, and the commit at which it began.

    Written where there is nothing yet.

    Raises:
        ValueError: Where it is of other settings.
    """
    path = folder / "training.json"
    wanted = records.plain(settings(recipe, setting) | {"seed": seed})
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jr.files.write_json(path, {"settings": wanted, "commit": records.commit()})
    found = jr.files.read_json(path)
    other = {k for k, value in wanted.items() if found["settings"].get(k) != value}
    if other:
        raise ValueError(
            f"--out must not hold a training of other settings: {folder} differs in "
            f"{', '.join(sorted(other))}; delete it, or choose another --out"
        )
    return found


def num_steps(recipe: Recipe, setting: Setting, data: str) -> int:
    """Steps of a whole training."""
    images = setting.images or config.IMAGES[data]
    return setting.num_epochs * repeats(recipe) * (images // setting.batch_size)


def repeats(recipe: Recipe) -> int:
    """Steps on each batch."""
    return recipe.passes if recipe.method == "free" else 1


def network(name: str, data: str, preset: str, out: Path, seed: int = 0) -> None:
    """Train a network of `RECIPES`, or finish it."""
    recipe, setting = RECIPES[data][name], config.setting(name, data, preset)
    run(recipe, setting, data, preset, folder_of(name, data, preset, out), seed)


def run(
    recipe: Recipe, setting: Setting, data: str, preset: str, folder: Path, seed: int
) -> Partial:
    """Train a network, or finish it; returns it as a function that returns logits."""
    same(folder, recipe, setting, seed)
    images = jr.data.load(data, f"train[:-{HELD_OUT}]")
    x, y = images.x[: setting.images], images.y[: setting.images]
    # the same for all networks: methods are compared from one start, on batches in one order
    init_key, fit_key, attack_key = jax.random.split(jax.random.key(seed), 3)
    model, params, state = start(setting.model, recipe.widths, init_key, x.shape[1:])
    steps = num_steps(recipe, setting, data)
    jr.train.fit(
        objective(recipe, setting, model, steps, x.shape),
        params,
        optimizer(recipe, setting, steps),
        (x, y),
        key=fit_key,
        num_epochs=setting.num_epochs,
        batch_size=setting.batch_size,
        repeats=repeats(recipe),
        augment=jr.transforms.crop_and_flip if setting.augment else None,
        model_state=state,
        validate=validation(setting, recipe, data, preset, attack_key),
        directory=folder,
        resume=True,
        progress=True,
    )
    done = records.restored(apply(setting.model, recipe.widths), folder, steps)
    assert done is not None
    return done


def validation(
    setting: Setting, recipe: Recipe, data: str, preset: str, key: Any
) -> Callable[[PyTree, PyTree], dict[str, float]]:
    """Accuracies on held-out images after each epoch: clean, and under PGD at the same radius."""
    held = jr.data.load(data, f"train[-{HELD_OUT}:]")
    num = config.SIZES[preset].validated
    x, y = held.x[:num], held.y[:num]
    ball, (num_pgd, size) = jr.Ball("linf", config.EPS[data]), VALIDATION[data]

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        subject = Partial(apply(setting.model, recipe.widths), {"params": params, **model_state})
        attacked = jr.attacks.pgd(
            subject, x, y, key=key, ball=ball, num_steps=num_pgd, step_size=size
        )
        right = {"accuracy": subject(x), "pgd_accuracy": subject(attacked)}
        return {name: float(np.mean(np.argmax(z, -1) == y)) for name, z in right.items()}

    return validate


def optimizer(recipe: Recipe, setting: Setting, steps: int) -> optax.GradientTransformation:
    """Of a run of so many steps."""
    if setting.drops is None:
        falling = optax.cosine_decay_schedule(setting.rate, steps)
    else:
        drops = {round(share * steps): factor for share, factor in setting.drops}
        falling = optax.piecewise_constant_schedule(setting.rate, drops)
    if setting.optimizer == "adam":
        return optax.adam(falling)
    kernels = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    decay = optax.add_decayed_weights(setting.weight_decay, kernels)
    return optax.chain(decay, optax.sgd(falling, momentum=0.9))


def objective(
    recipe: Recipe, setting: Setting, model: Model, steps: int, shape: tuple[int, ...]
) -> jr.Objective:
    """The training method of a recipe, for so many steps on images of this shape in all."""
    batch = (setting.batch_size, *shape[1:])
    rises = setting.rises if recipe.rises is None else recipe.rises
    if recipe.method == "mma":
        search = functools.partial(
            jr.attacks.adaptive_norm_pgd, search="soft_margin", num_steps=recipe.num_steps
        )
        made = jr.objectives.mma(
            model.forward, search, num_examples=shape[0], eps_min=recipe.eps_min,
            d_max=recipe.eps, eval_forward=model.frozen,
        )  # fmt: skip
    elif recipe.method == "natural" or rises == 0:
        made = within(recipe, model, batch, recipe.eps)
    else:
        made = jr.objectives.scheduled(
            functools.partial(within, recipe, model, batch),
            eps=optax.linear_schedule(0.0, recipe.eps, round(rises * steps)),
        )
    if recipe.regulariser == "none":
        return made
    return jr.objectives.add(made, regulariser(recipe, setting, model.forward))


def within(recipe: Recipe, model: Model, batch: tuple[int, ...], eps: Any) -> jr.Objective:
    """The training method of a recipe at a radius."""
    o, ball = jr.objectives, jr.Ball("linf", eps)
    forward, frozen = model.forward, model.frozen
    pgd = functools.partial(jr.attacks.pgd, num_steps=recipe.num_steps, step_size=recipe.step * eps)
    match recipe.method:
        case "natural":
            return o.cross_entropy(forward)
        case "free":
            return o.free(forward, ball=ball, shape=batch)
        case "yopo":
            stem, trunk = o.from_split_module(model.module)
            return o.yopo(
                stem, trunk, recipe.passes, recipe.inner, ball=ball, step_size=recipe.step * eps
            )
        case "trades":
            return o.trades(forward, pgd, ball=ball, beta=recipe.beta, eval_forward=frozen)
        case _:
            return o.madry(
                forward, attack(recipe, pgd), ball=ball, labels=labels(recipe), eval_forward=frozen
            )


def attack(recipe: Recipe, pgd: Any) -> Attack:
    """The attack of "madry"."""
    if recipe.attack == "fgsm":
        return jr.attacks.fgsm
    if recipe.attack == "pgd":
        return pgd
    return jr.attacks.most_confusing(pgd)


def labels(recipe: Recipe) -> Any:
    """The labels of "madry", as published: half for the true class, or beta of 9."""
    match recipe.labels:
        case "true":
            return None
        case "smoothed":
            return jr.objectives.smoothed_labels(0.5)
        case "adversarial":
            return jr.objectives.adversarial_labels(9.0)


def regulariser(recipe: Recipe, setting: Setting, forward: Any) -> jr.Objective:
    """What is added at the clean images."""
    own = weight(recipe, setting)
    match recipe.regulariser:
        case "jacobian":
            return jr.objectives.jacobian(forward, weight=own)
        case "input gradient":
            return jr.objectives.input_gradient(forward, weight=own)
        case _:
            return jr.objectives.cross_lipschitz(forward, weight=own)


def gradients(recipe: Recipe) -> int:
    """Forward and backward passes of the whole model, of an image and an epoch.

    Passes through the first layer alone (YOPO) and forward passes alone (MMA's bisections, the
    clean logits of labels) are left out. A product of a regulariser counts as two: it is
    differentiated.
    """
    products = {"none": 0, "jacobian": 2, "input gradient": 2, "cross-Lipschitz": 20}
    own = {
        "natural": 1,
        "madry": 1 + (1 if recipe.attack == "fgsm" else recipe.num_steps),
        "free": recipe.passes,
        "yopo": recipe.passes + 1,
        "trades": recipe.num_steps + 2,
        "mma": recipe.num_steps + 2,
    }[recipe.method]
    return own + products[recipe.regulariser]


def trained(name: str, data: str, preset: str, out: Path, seed: int) -> Partial | None:
    """A network as a function that returns logits; None where its training is not over.

    Raises:
        ValueError: Where it was trained in other settings.
    """
    if name in config.ENSEMBLES[data]:
        members = [trained(one, data, preset, out, seed) for one in config.ENSEMBLES[data][name]]
        found = [one for one in members if one is not None]
        if len(found) < len(members):
            return None
        ensemble: Any = jr.transforms.ensemble(found)
        return ensemble
    recipe, setting = RECIPES[data][name], config.setting(name, data, preset)
    folder, steps = folder_of(name, data, preset, out), num_steps(recipe, setting, data)
    done = records.restored(apply(setting.model, recipe.widths), folder, steps)
    if done is not None:
        same(folder, recipe, setting, seed)
    return done
