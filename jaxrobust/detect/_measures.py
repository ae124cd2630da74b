"""How classes lie in the embedding, and how steep the model is: paper 004, sec. 2 to 4."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.detect._common import check_embeddings
from jaxrobust.detect._distances import Points, in_chunks, is_real, pack, squared_distances
from jaxrobust.losses import Loss
from jaxrobust.types import Images, Labels, LogitsFn, as_partial, per_example, row_keys


def embedding_margin(embeddings: Any, labels: Any, *, num_classes: int, chunk: int = 128) -> float:
    """The least distance of two points of different classes: eta of eq. 2, over these points.

    It falls as points are added, so it compares two models on equal images only. Every pair is
    looked at. Memory: chunk x classes x 128 floats beside the points.

    Args:
        embeddings: `(points, dims)`.
        labels: Their classes.
        num_classes: Number of classes, each with a point.
        chunk: Points looked at at once; it changes no bit of the result.

    Raises:
        ValueError: For embeddings that are not finite, and a class without points.

    >>> z = np.array([[0.0, 0.0], [0.0, 1.0], [3.0, 5.0]], np.float32)
    >>> embedding_margin(z, np.array([0, 0, 1]), num_classes=2)
    5.0
    """
    embeddings, labels = check_embeddings(embeddings, labels, num_classes)
    checks.check_count(chunk, "chunk")
    points = pack(embeddings, labels, num_classes)
    return float(np.sqrt(_nearest(points, jnp.asarray(embeddings), jnp.asarray(labels), chunk)))


@functools.partial(jax.jit, static_argnames="chunk")
def _nearest(points: Points, z: Array, y: Array, chunk: int) -> Array:
    """Least squared distance of a row to a point of another class."""
    dims = points.values.shape[2]
    # The class travels with its row: past the dims, exact in floats.
    rows = jnp.concatenate([jnp.pad(z, ((0, 0), (0, dims - z.shape[1]))), y[:, None]], 1)

    def least(part: Array) -> Array:
        others = jnp.arange(len(points.sizes)) != part[:, -1:]

        def look(least: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
            wanted = others[..., None] & is_real(points, block[1])
            found = jnp.where(wanted, squared_distances(block[0], part[:, :dims]), jnp.inf)
            return jnp.minimum(least, jnp.min(found, (1, 2))), None

        start = jnp.zeros_like(part, shape=(len(part),)) + jnp.inf
        return jax.lax.scan(look, start, (points.values, jnp.arange(len(points.values))))[0]

    return jnp.min(in_chunks(least, rows.astype(z.dtype), chunk))


def jacobian_norm(logits_fn: LogitsFn, x: Images, *, key: Any) -> Float[Array, " batch"]:
    """Frobenius norm of the embedding's Jacobian at each image, exact.

    One backward pass an image and dim of the embedding, one after another. Memory: one forward
    and one backward pass of the whole batch, whatever the dims: batch x what a gradient takes.

    Args:
        logits_fn: `(batch, *dims) -> (logits, embedding)`, or `Randomized`.
        x: `(batch, *dims)` images.
        key: Typed key; used by random models only.

    Raises:
        ValueError: For a model that exposes no embedding.

    References: paper 004, eq. 3.

    >>> model = lambda x: (x, x * jnp.array([3.0, 4.0]))
    >>> jacobian_norm(model, jnp.ones((1, 2)), key=jax.random.key(0))
    Array([5.], dtype=float32)
    """
    return _jacobian_norms(as_partial(logits_fn), jnp.asarray(x), row_keys(key, len(x)))


def gradient_norms(
    logits_fn: LogitsFn, x: Images, y: Labels, *, key: Any, loss: Loss = losses.cross_entropy
) -> dict[str, Float[Array, " batch"]]:
    """l2 norm of the loss's derivative in each array of the model, at each image.

    Of a Flax model in a `Partial` these are its layers' kernels and biases, by their paths.
    Memory: one image's gradient at a time.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`, alone or with an embedding, or
            `Randomized`; a pytree with arrays, such as a `jax.tree_util.Partial` of weights.
        x: `(batch, *dims)` images.
        y: `(batch,)` labels.
        key: Typed key; used by random models only.
        loss: Of one example.

    Raises:
        ValueError: For a model without an array of floats: weights that a closure holds are not
            seen.

    References: paper 004, sec. 3.3 and 4.2 (gradient norms per layer along the steps of BIM).

    >>> model = jax.tree_util.Partial(lambda weights, x: x @ weights["w"], {"w": jnp.zeros((1, 2))})
    >>> found = gradient_norms(model, jnp.ones((1, 1)), jnp.array([0]), key=jax.random.key(0))
    >>> found["[<flat index 0>][0]['w']"]
    Array([0.70710...], dtype=float32)
    """
    model = as_partial(logits_fn)
    floats = [
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(model)
    ]
    if not any(floats):
        raise ValueError(
            "logits_fn must be a pytree with its weights in it, such as jax.tree_util.Partial("
            f"model.apply, variables); got {logits_fn!r:.60} without any"
        )
    return _gradient_norms(model, loss, jnp.asarray(x), jnp.asarray(y), row_keys(key, len(x)))


@functools.partial(jax.jit, static_argnums=1)
def _gradient_norms(
    logits_fn: LogitsFn, loss: Loss, x: Array, y: Array, keys: Array
) -> dict[str, Array]:
    def one(row: tuple[Array, Array, Array]) -> dict[str, Array]:
        x, y, key = row
        value = lambda model: loss(per_example(model)(x, key), y)
        slopes = jax.tree_util.tree_leaves_with_path(jax.grad(value, allow_int=True)(logits_fn))
        return {
            jax.tree_util.keystr(path): jnp.linalg.norm(slope)
            for path, slope in slopes
            if jnp.issubdtype(slope.dtype, jnp.floating)
        }

    return jax.lax.map(one, (x, y, keys))


@jax.jit
def _jacobian_norms(logits_fn: LogitsFn, x: Array, keys: Array) -> Array:
    model = per_example(logits_fn)

    def embed(x: Array, key: Array) -> Array:
        outputs = model(x, key)
        if not isinstance(outputs, tuple) or len(outputs) < 2:
            raise ValueError(
                "logits_fn must return (logits, embedding); got "
                f"{type(outputs).__name__} without an embedding"
            )
        return outputs[1]

    def one(x: Array, key: Array) -> Array:
        z, pullback = gradients.vjp(embed, x, key)

        def add(total: Array, row: Array) -> tuple[Array, None]:
            return total + jnp.sum(pullback(row.reshape(z.shape)) ** 2), None

        rows = jnp.eye(z.size, dtype=z.dtype)
        return jnp.sqrt(jax.lax.scan(add, jnp.zeros_like(x, shape=()), rows)[0])

    return jax.vmap(one)(x, keys)


def penetration_bound(margin: float, jacobian_norms: Any) -> np.ndarray:
    """Eq. 4: `eta / |J(x)|`, about how far an image must move to enter another class.

    No certificate: it is of first order, drops the error of Taylor's approximation, and its margin
    is that of the points looked at. It compares models.

    Args:
        margin: `embedding_margin`.
        jacobian_norms: `(batch,)` from `jacobian_norm`.

    Returns:
        `(batch,)` l2 distances in pixel units; infinite where the Jacobian is zero.

    Raises:
        ValueError: For a margin or norms that are negative or no number.

    References: paper 004, eq. 4.

    >>> penetration_bound(2.0, np.array([4.0, 0.5]))
    array([0.5, 4. ])
    """
    norms = np.asarray(jacobian_norms, np.float64)
    for name, value in (("margin", np.asarray(margin)), ("jacobian_norms", norms)):
        if not np.all(value >= 0):
            raise ValueError(f"{name} must be at least 0; got {value}")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norms > 0, margin / norms, np.inf)


def cluster_variance(embeddings: Any, labels: Any, *, num_classes: int) -> float:
    """Mean over the classes of their points' mean squared distance from the class's mean.

    Printed is a sum over the classes of norms without a square; squared they are variances, and
    the mean does not grow with the number of classes.

    Args:
        embeddings: `(points, dims)`.
        labels: Their classes.
        num_classes: Number of classes, each with a point.

    Raises:
        ValueError: For embeddings that are not finite, and a class without points.

    References: paper 004, sec. 3.

    >>> z = np.array([[0.0], [2.0], [8.0], [8.0]], np.float32)
    >>> cluster_variance(z, np.array([0, 0, 1, 1]), num_classes=2)
    0.5
    """
    embeddings, labels = check_embeddings(embeddings, labels, num_classes)
    means = _means(embeddings, labels, num_classes)
    squares = np.sum((embeddings - means[labels]) ** 2, 1)
    return float(np.mean([squares[labels == c].mean() for c in range(num_classes)]))


def cluster_distance(embeddings: Any, labels: Any, *, num_classes: int) -> float:
    """Mean distance of two classes' means, over all pairs.

    Args:
        embeddings: `(points, dims)`.
        labels: Their classes.
        num_classes: Number of classes, each with a point.

    Raises:
        ValueError: For embeddings that are not finite, and a class without points.

    References: paper 004, sec. 3.

    >>> z = np.array([[0.0], [2.0], [8.0], [8.0]], np.float32)
    >>> cluster_distance(z, np.array([0, 0, 1, 1]), num_classes=2)
    7.0
    """
    means = _means(*check_embeddings(embeddings, labels, num_classes), num_classes)
    apart = np.linalg.norm(means[:, None] - means, axis=-1)
    return float(apart.sum() / (num_classes * (num_classes - 1)))


def _means(embeddings: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.stack([embeddings[labels == c].mean(0, dtype=float) for c in range(num_classes)])
