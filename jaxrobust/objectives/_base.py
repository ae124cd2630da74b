"""Objectives from losses, their sums and multiples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Key, PyTree

from jaxrobust.losses import Loss
from jaxrobust.types import Batch, LogitsFn, Objective, Out, logits_of

Forward: TypeAlias = Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
"""`forward(params, model_state, x) -> (outputs, model_state)`, in training mode."""

BatchLoss: TypeAlias = Callable[[PyTree, Array, Array], tuple[Array, dict[Any, Any]]]
"""`loss(outputs, y, key) -> (scalar, metrics)` of a whole batch."""


def from_module(apply: Callable[..., Any]) -> Forward:
    """The forward function of a Flax module without state of its own.

    Args:
        apply: `module.apply`, called as `apply({"params": params}, x)`.

    >>> from_module(lambda variables, x: x * variables["params"])(2.0, {}, jnp.ones(1))
    (Array([2.], dtype=float32), {})
    """

    def forward(params: PyTree, model_state: PyTree, x: Array) -> tuple[PyTree, PyTree]:
        return apply({"params": params}, x), model_state

    return forward


def check_forward(forward: Any) -> None:
    """Refuse what is no forward function, and a Flax module's bare `apply`."""
    made = "which objectives.from_module(module.apply) makes"
    check_function(forward, "forward", ("params", "model_state", "x"), made)


def check_function(function: Any, name: str, takes: tuple[str, ...], made: str) -> None:
    """Refuse what cannot be called with these arguments by position; `made` says where it is had.

    A first argument called `variables` is that of a Flax module's method.
    """
    try:
        signature = inspect.signature(function)
        signature.bind(*takes)
        fits = next(iter(signature.parameters)) != "variables"
    except TypeError:
        fits = False
    except ValueError:  # not every callable has a signature
        return
    if not fits:
        raise ValueError(
            f"{name} must be a function of ({', '.join(takes)}), {made}; got {function!r:.60}"
        )


def frozen_model(
    forward: Forward, eval_forward: Forward | None, params: PyTree, model_state: PyTree
) -> LogitsFn:
    """The model as an attack sees it inside a training step: in evaluation mode, and constant.

    Args:
        forward: The forward function in training mode, which serves where the model has no state.
        eval_forward: The forward function in evaluation mode, or None.
        params: The current parameters.
        model_state: The model's state before the step.

    Raises:
        ValueError: For a model with a state but no `eval_forward`: attacks look at one image at a
            time, and batch statistics of one image would take its gradient away.

    >>> frozen_model(lambda p, s, x: (x * p, s), None, 2.0, {})(jnp.ones(1))
    Array([2.], dtype=float32)
    """
    check_forward(forward)
    if eval_forward is None and jax.tree.leaves(model_state):
        raise ValueError(
            "eval_forward must be given for a model with a state (batch statistics): the "
            "forward function in evaluation mode, for the attack"
        )
    weights = jax.lax.stop_gradient((params, model_state))
    return Partial(_outputs, Partial(eval_forward or forward), *weights)


def _outputs(forward: Forward, params: PyTree, model_state: PyTree, x: Array) -> PyTree:
    return forward(params, model_state, x)[0]


def from_stateful_module(apply: Callable[..., Any]) -> tuple[Forward, Forward]:
    """The forward functions of a Flax module with batch statistics: in training, and frozen.

    Attacks, `eval_forward` of objectives and evaluation want the second one.

    Args:
        apply: `module.apply`, called with `train=True` and all collections but "params" mutable, or
            with neither. `model_state` is the module's variables without "params". Another method
            of the module is `functools.partial(module.apply, method="outputs")`: logits and
            embedding of `models.resnet`. Make it once, for each such partial is a program apart.

    >>> import flax.linen as nn
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         return nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    >>> model, x = Model(), jnp.array([[0.0], [2.0]])
    >>> variables = model.init(jax.random.key(0), x)
    >>> params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    >>> forward, frozen = from_stateful_module(model.apply)
    >>> outputs, state = forward(params, state, x)
    >>> outputs.ravel().round(2), state["batch_stats"]["BatchNorm_0"]["mean"]
    (Array([-1.,  1.], dtype=float32), Array([0.5], dtype=float32))
    """

    def forward(params: PyTree, model_state: PyTree, x: Array) -> tuple[PyTree, PyTree]:
        variables = {"params": params, **model_state}
        return apply(variables, x, train=True, mutable=list(model_state))

    def frozen(params: PyTree, model_state: PyTree, x: Array) -> tuple[PyTree, PyTree]:
        return apply({"params": params, **model_state}, x), model_state

    return forward, frozen


def from_loss(forward: Forward, loss: Loss, accuracy: str = "accuracy") -> Objective:
    """The mean of a per-example loss over the batch; no state.

    Args:
        forward: The model.
        loss: `loss(outputs, y) -> scalar` for one example, minimised.
        accuracy: Name under which the batch accuracy appears among the metrics.

    >>> from jaxrobust import losses
    >>> objective = from_loss(lambda p, s, x: (x * p, s), losses.cross_entropy)
    >>> batch = Batch(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0]))
    >>> out, grads = objective.value_and_grad(jnp.ones(2), {}, (), batch, key=jax.random.key(0))
    >>> float(out.loss)
    0.693147...
    """

    def of_rows(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        hits = jnp.argmax(logits_of(outputs), axis=-1) == y
        return jnp.mean(jax.vmap(loss)(outputs, y)), {accuracy: jnp.mean(hits)}

    of_rows.__qualname__ = _name_of(loss)
    return from_batch_loss(forward, of_rows)


def from_batch_loss(forward: Forward, loss: BatchLoss) -> Objective:
    """A loss of the whole batch's outputs, in one pass of the model; no state.

    Args:
        forward: The model.
        loss: `loss(outputs, y, key) -> (scalar, metrics)`, minimised; for losses in which rows
            meet, or that draw.

    >>> objective = from_batch_loss(lambda p, s, x: (x * p, s), lambda z, y, key: (z.sum(), {}))
    >>> batch = Batch(jnp.ones((2, 1)), jnp.array([0, 0]), jnp.array([0, 1]))
    >>> objective.value_and_grad(jnp.ones(1), {}, (), batch, key=jax.random.key(0))[1]
    Array([2.], dtype=float32)
    """
    return Objective(_no_state, OnePass(forward, loss))


def _no_state(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
    del params, key
    return ()


class OnePass:
    """The `value_and_grad` of a loss of the batch's outputs, which `add` joins to its like.

    Attributes:
        forward: The model.
        loss: As `from_batch_loss` takes it.
    """

    def __init__(self, forward: Forward, loss: BatchLoss) -> None:
        check_forward(forward)
        self.forward, self.loss = forward, loss
        self.__qualname__ = _name_of(loss)  # `fit` names by it what failed

    def __call__(
        self, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Array
    ) -> tuple[Out, PyTree]:
        """One pass over the batch, and back."""

        def total(params: PyTree) -> tuple[Array, Out]:
            outputs, new_state = self.forward(params, model_state, batch.x)
            value, metrics = self.loss(outputs, batch.y, key)
            return value, Out(value, new_state, state, metrics)

        grads, out = jax.grad(total, has_aux=True)(params)
        return out, grads


def _name_of(loss: Any) -> str:
    """What a loss is called, with the function that made it in front."""
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def mean_loss(
    forward: Forward, loss: Loss, targets: Array, accuracy: str
) -> Callable[[PyTree, PyTree, PyTree, Batch], tuple[Array, Out]]:
    """`(params, model_state, state, batch) -> (loss, Out)`: the mean of a loss over the batch.

    Args:
        forward: The model.
        loss: `loss(outputs, target) -> scalar` for one example.
        targets: What the loss is handed for each row: `batch.y`, or probabilities.
        accuracy: Name under which the accuracy, by `batch.y`, appears among the metrics.
    """
    check_forward(forward)

    def mean(params: PyTree, model_state: PyTree, state: PyTree, batch: Batch) -> tuple[Array, Out]:
        outputs, new_state = forward(params, model_state, batch.x)
        value = jnp.mean(jax.vmap(loss)(outputs, targets))
        hits = jnp.argmax(logits_of(outputs), axis=-1) == batch.y
        return value, Out(value, new_state, state, {accuracy: jnp.mean(hits)})

    return mean


def scale(weight: float | Array, objective: Objective) -> Objective:
    """An objective times a constant.

    >>> from jaxrobust import losses
    >>> half = scale(0.5, from_loss(lambda p, s, x: (x * p, s), losses.cross_entropy))
    >>> batch = Batch(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0]))
    >>> float(half.value_and_grad(jnp.ones(2), {}, (), batch, key=jax.random.key(0))[0].loss)
    0.346573...
    """
    step = objective.value_and_grad
    if isinstance(step, OnePass):

        def weighted(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[str, Array]]:
            value, metrics = step.loss(outputs, y, key)
            return weight * value, metrics

        weighted.__qualname__ = step.__qualname__
        return Objective(objective.init, OnePass(step.forward, weighted))

    def value_and_grad(*args: Any, **kwargs: Any) -> tuple[Out, PyTree]:
        out, grads = step(*args, **kwargs)
        return out._replace(loss=weight * out.loss), jax.tree.map(lambda g: weight * g, grads)

    value_and_grad.__qualname__ = objective.name
    return Objective(objective.init, value_and_grad)


def add(*objectives: Objective) -> Objective:
    """The sum of objectives: each with its own key, state and adversarial batch.

    Losses and gradients are summed; `model_state` is threaded through in order. Members that only
    look at the outputs of one and the same `forward` on the clean batch (`cross_entropy`,
    `siamese`, `reduce_variance`, ...) share a pass: together they cost what one does, and batch
    statistics move once. Where two members report a metric of the same name, the later one's name
    gets its position appended.

    Args:
        objectives: At least one.

    Raises:
        ValueError: If there are none.

    >>> add()
    Traceback (most recent call last):
    ValueError: objectives must hold at least one objective; got none
    """
    if not objectives:
        raise ValueError("objectives must hold at least one objective; got none")
    for one in objectives:
        if not isinstance(one, Objective):
            raise ValueError(f"objectives must be Objective, one by one; got {type(one).__name__}")
    steps = [one.value_and_grad for one in objectives]

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[PyTree, ...]:
        keys = jax.random.split(key, len(objectives))
        return tuple(one.init(params, k) for one, k in zip(objectives, keys, strict=True))

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        loss, grads, states, found = jnp.zeros(()), None, list(state), {}
        for i, step in enumerate(steps):
            if i in found:
                continue
            if isinstance(step, OnePass):
                out, more = _together(step.forward, steps)(params, model_state, (), batch, key=key)
                found |= out.metrics
            else:
                own = jax.random.fold_in(key, i)
                out, more = step(params, model_state, state[i], batch, key=own)
                states[i], found[i] = out.state, out.metrics
            loss, model_state = loss + out.loss, out.model_state
            grads = more if grads is None else jax.tree.map(jnp.add, grads, more)
        metrics = {}
        for i in range(len(steps)):
            for name, value in found[i].items():
                metrics[f"{name}_{i}" if name in metrics else name] = value
        return Out(loss, model_state, tuple(states), metrics), grads

    value_and_grad.__qualname__ = " + ".join(one.name for one in objectives)
    return Objective(init, value_and_grad)


def _together(forward: Forward, steps: Sequence[Any]) -> OnePass:
    """Those of the steps that are passes of this model, in one; metrics by position."""

    def loss(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[int, dict[str, Array]]]:
        total, metrics = jnp.zeros(()), {}
        for i, step in enumerate(steps):
            if isinstance(step, OnePass) and step.forward is forward:
                value, metrics[i] = step.loss(outputs, y, jax.random.fold_in(key, i))
                total = total + value
        return total, metrics

    return OnePass(forward, loss)
