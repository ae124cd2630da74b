"""Training against flows: a certificate of paper 002, and a pool of attacked images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree, UInt16

from jaxrobust import losses
from jaxrobust.checks import check_count, check_radius
from jaxrobust.flow import largest_displacement
from jaxrobust.layers import Dense, Layer
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, add, from_loss, frozen_model, scale
from jaxrobust.objectives._pair_solvers import PairSolver
from jaxrobust.objectives._sdp import sdp_regularized
from jaxrobust.threat import UNIT_BOX, Box, check_box
from jaxrobust.types import Batch, LogitsFn, Objective, Out

LEVELS = 65535
"""Grey levels of a pool: 16 bits a pixel."""


def spatial_sdp(
    forward: Forward,
    layers: Callable[[PyTree], list[Layer]],
    solver: PairSolver,
    *,
    weight: float | Array,
    eps: float | Array,
    shape: tuple[int, int],
    null_space: Any = "dirichlet",
    loss: Loss = losses.hinge,
    renew_every: int | None = None,
    all_pairs: bool = False,
) -> Objective:
    """`sdp_regularized` for flows: f_sdp of paper 002.

    A flow of the ball moves pixel i of an image in [0, 1] by at most `sqrt(2) eps lambda_i` in
    value, lambda from `flow.largest_displacement`: the pair of its displacements lies in a disc of
    radius `eps lambda_i`, and slopes along rows and columns are at most 1. So a pair's margin
    changes by at most `eps / 4` times the value of paper 003's program for a first layer whose
    inputs count `sqrt(2) lambda_i` times, which is what is trained on.

    The paper's program is of another scale, so that `weight` is not its lambda: it leaves out eps,
    takes both parts of the flow for equal, and lets slopes of the activation run from -1 to 1,
    which holds but is looser than paper 003's 0 to 1.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        layers: `params -> layers`: the same network, `Dense, Relu | Sigmoid, Dense`.
        solver: `lanczos_dual(...)`, the paper's dual form, or `warm_mixing(...)`.
        weight: Multiple of the regulariser, which does not depend on eps.
        eps: Radius of the flow ball at which worst pairs are looked up; see `sdp_regularized`.
        shape: Height and width of the images. Channels, if any, come last and move together.
        null_space: Rule of the flow ball.
        loss: Loss of an example on clean images.
        renew_every: As in `sdp_regularized`.
        all_pairs: As in `sdp_regularized`.

    Returns:
        Objective with the metrics of `sdp_regularized`, whose `sdp_error` is that of the flows.

    Raises:
        ValueError: For a rule that is none; at the first step, for a network whose inputs are not
            images of this shape.

    References: paper 002, eq. 9, proposition 2 and sec. 6.7, corrected; paper 003,
        eq. 15.
    """
    reach = math.sqrt(2.0) * largest_displacement(shape, null_space).ravel()
    return sdp_regularized(
        forward, lambda params: _weighted(layers(params), reach, shape), solver, weight=weight,
        eps=eps, loss=loss, renew_every=renew_every, all_pairs=all_pairs,
    )  # fmt: skip


def _weighted(network: list[Layer], reach: np.ndarray, shape: tuple[int, int]) -> list[Layer]:
    """The network with the inputs of its first `Dense` counted as often as they can move."""
    for i, layer in enumerate(network):
        if not isinstance(layer, Dense):
            continue
        inputs = len(layer.kernel)
        if inputs % len(reach):
            raise ValueError(
                f"shape must be height and width of the network's {inputs} inputs; got {shape}"
            )
        factors = jnp.asarray(np.repeat(reach, inputs // len(reach)), layer.kernel.dtype)
        first = Dense(factors[:, None] * layer.kernel, layer.bias)
        return [*network[:i], first, *network[i + 1 :]]
    return network  # `two_layers` says what is wrong


class Pool(NamedTuple):
    """Attacked images of the whole training set.

    Attributes:
        step: Steps taken.
        images: `(num_examples, *dims)`, as 16-bit levels of the box.
        filled: `(num_examples,)` whether the image was ever made.
    """

    step: Array
    images: UInt16[Array, "num_examples *dims"]
    filled: Bool[Array, " num_examples"]


def flow_adversarial(
    forward: Forward,
    attack: Callable[..., Array],
    *,
    shape: tuple[int, ...],
    weight: float | Array = 0.3,
    num_epochs: int = 3,
    loss: Loss = losses.cross_entropy,
    eval_forward: Forward | None = None,
    box: Box = UNIT_BOX,
) -> Objective:
    """Clean loss plus a multiple of the loss at attacked images from a pool: f_at of paper 002.

    The attack is too slow for every step. Each row is attacked as it comes by in every
    `num_epochs`-th epoch, from the first on, and its image kept until then. The paper attacks the
    whole training set at once, every three epochs, and draws from that; here each row meets its own
    image, and images are as old as the pass that made them. A row that no such epoch visited (`fit`
    leaves out the remainder of an epoch) counts with its clean image until one does.

    The pool is state, and so is written into every checkpoint: 2 bytes a pixel, 94 MB for MNIST,
    half of what float32 takes. 16-bit levels are off by at most 1 / 131,070 of the box's width;
    float16, of the same size, by 1 / 4,096, and 8-bit images by 1 / 510, as much as a flow of 0.002
    pixels may change.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        attack: `attack(logits_fn, x, y, *, key) -> images`: `functools.partial` of any attack, the
            ball or the penalty among its arguments. The paper's is stAdv with a weight of 0.05 on
            the flow's total variation.
        shape: `(num_examples, *dims)`, of the whole training set: `x.shape`.
        weight: Lambda_r.
        num_epochs: Epochs between two attacks on a row; 1 attacks at every step.
        loss: Of an example, clean or attacked.
        eval_forward: As in `madry`.
        box: Legal pixel values.

    Returns:
        Objective with metrics `accuracy` (clean), `adversarial_accuracy` (at the pool's images),
        and state `((), Pool)`. The loss is NaN for a row that the pool does not have.

    Raises:
        ValueError: For a weight, a count, a shape or a box that cannot be meant; at the first step,
            for a batch of another shape, and for a model with a state but no `eval_forward`.

    References: paper 002, sec. 6.8 (5); Xiao et al. 2018.
    """
    check_radius(weight, "weight")
    if not isinstance(shape, tuple) or len(shape) < 2:
        raise ValueError(f"shape must be that of all training images, x.shape; got {shape!r}")
    for size in shape:
        check_count(size, "shape")
    check_count(num_epochs, "num_epochs")
    check_box(box)
    pool = _pool(forward, attack, shape, num_epochs, loss, eval_forward, box)
    return add(from_loss(forward, loss), scale(weight, pool))


def _pool(
    forward: Forward,
    attack: Callable[..., Array],
    shape: tuple[int, ...],
    num_epochs: int,
    loss: Loss,
    eval_forward: Forward | None,
    box: Box,
) -> Objective:
    """The loss at the pool's images."""
    at_pool = from_loss(forward, loss, accuracy="adversarial_accuracy")
    num_examples, width = shape[0], box[1] - box[0]

    def init(params: PyTree, key: Key[Array, ""]) -> Pool:
        del params, key
        return Pool(
            jnp.zeros((), jnp.int32), jnp.zeros(shape, jnp.uint16), jnp.zeros(num_examples, bool)
        )

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: Pool, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        x, rows = batch.x, batch.index
        if x.shape[1:] != shape[1:] or len(x) > num_examples:
            raise ValueError(
                f"shape must be that of all training images, x.shape; got {shape} and a batch of "
                f"{x.shape}"
            )
        logits_fn: LogitsFn = frozen_model(forward, eval_forward, params, model_state)
        kept = state.images[rows].astype(x.dtype) * (width / LEVELS) + box[0]
        kept = jnp.where(state.filled[rows].reshape(-1, *[1] * (x.ndim - 1)), kept, x)
        # The pool itself stays outside of the conditional, which would copy it.
        due = (state.step // (num_examples // len(x))) % num_epochs == 0
        attacked = jax.lax.cond(
            due,
            lambda: jax.lax.stop_gradient(attack(logits_fn, x, batch.y, key=key)).astype(x.dtype),
            lambda: kept,
        )
        levels = jnp.round((attacked - box[0]) * (LEVELS / width)).astype(jnp.uint16)
        state = Pool(
            state.step + 1,
            state.images.at[rows].set(levels),
            state.filled.at[rows].set(state.filled[rows] | due),
        )
        known = (rows < num_examples).reshape(-1, *[1] * (x.ndim - 1))
        out, grads = at_pool.value_and_grad(
            params, model_state, (), batch._replace(x=jnp.where(known, attacked, jnp.nan)), key=key
        )
        return out._replace(state=state), grads

    return Objective(init, value_and_grad)
