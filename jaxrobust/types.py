"""The few shapes that everything else speaks: models, keys, objectives, bounds, findings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxrobust.marks import FORWARD, mark

Images: TypeAlias = Float[Array, "batch *dims"] | Float[np.ndarray, "batch *dims"]
Labels: TypeAlias = Int[Array, " batch"] | Int[np.ndarray, " batch"]
Examples: TypeAlias = tuple[Images, Labels] | tuple[Images, Labels, int]
"""Images and labels; the third is the number of classes that `data.load` adds."""
Keys: TypeAlias = Key[Array, ""] | Key[Array, " batch"]
LogitsFn: TypeAlias = Callable[..., PyTree]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Randomized:
    """A model whose output is random: `fn(x, key) -> (batch, classes)`.

    Attacks draw a fresh key for every gradient step, `gradients.eot(n)` averages over n keys,
    and `evaluate` judges with keys of its own. A random transformation of the image in front of
    a deterministic model is the same thing.

    Args:
        fn: Pure function of a batch and a key; a `jax.tree_util.Partial` keeps its weights out of
            the compiled program.

    >>> import jax, jax.numpy as jnp
    >>> noisy = Randomized(lambda x, key: x + jax.random.normal(key, x.shape))
    >>> noisy(jnp.zeros((2, 3)), jax.random.key(0)).shape
    (2, 3)
    """

    fn: Any  # Callable[[Array, Array], PyTree], but unflattening passes placeholders

    def __post_init__(self) -> None:
        # Unflattening runs this with placeholders, which are left alone.
        if callable(self.fn):
            object.__setattr__(self, "fn", as_partial(self.fn))

    def __call__(self, x: Array, key: Array) -> PyTree:
        """Apply `fn` to a batch with one key."""
        return self.fn(x, key)


def as_partial(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a callable legal as a jit argument: pytrees pass, plain functions become static.

    A function that is no pytree is compiled with whatever it closes over, once: it must not change.

    >>> as_partial(len)([1, 2])
    2
    """
    if isinstance(fn, (jax.tree_util.Partial, Randomized)):
        return fn
    if any(base.__module__.startswith("flax.nnx") for base in inspect.getmro(type(fn))):
        raise ValueError(
            "logits_fn must not be a mutable nnx.Module, whose weights a compiled program would "
            "keep: split it (graph, state = nnx.split(module)) and pass jax.tree_util.Partial("
            "lambda state, x: nnx.merge(graph, state)(x), state)"
        )
    return jax.tree_util.Partial(fn)


def per_example(logits_fn: LogitsFn) -> Callable[[Array, Array], PyTree]:
    """Turn a batch model into `f(x, key)` on one example.

    The only place where a batch function meets one example: attacks and the judge of `evaluate`
    both go through it, so the batch of one that the model sees here is the form to get right.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`, or any pytree of arrays with a leading
            batch axis, the logits first; or a `Randomized` of such a function. Rows must not
            influence one another.

    Returns:
        `f(x, key)`: x of shape `(*dims)`, logits `(classes,)`; the key is ignored unless the model
        is `Randomized`, which `f.random` tells.

    >>> per_example(lambda x: x.sum(-1, keepdims=True))(jnp.ones(3), jax.random.key(0)).shape
    (1,)
    """
    random = isinstance(logits_fn, Randomized)

    def one(x: Array, key: Array) -> PyTree:
        batch = x[None]
        outputs = logits_fn(batch, key) if random else logits_fn(batch)
        one_row = jax.tree.map(lambda leaf: leaf[0], outputs)
        if isinstance(one_row, tuple):
            return (mark(one_row[0], FORWARD), *one_row[1:])
        return mark(one_row, FORWARD)

    one.random = random  # pyright: ignore[reportFunctionMemberAccess]
    return one


def logits_of(outputs: PyTree) -> Any:
    """The logits among a model's outputs: the outputs themselves, or the first of a tuple.

    >>> logits_of((jnp.zeros(10), jnp.zeros(64))).shape
    (10,)
    """
    return outputs[0] if isinstance(outputs, tuple) else outputs


def embedding_of(outputs: PyTree) -> Float[Array, "batch features"]:
    """The embeddings among a model's outputs for a batch: the second of a tuple, flattened.

    Raises:
        ValueError: For a model that returns logits alone, or no array of a row each behind them.

    >>> embedding_of((jnp.zeros((4, 10)), jnp.zeros((4, 2, 8)))).shape
    (4, 16)
    """
    if not isinstance(outputs, tuple) or len(outputs) < 2:
        came = f"a tuple of {len(outputs)}" if isinstance(outputs, tuple) else "logits alone"
        raise ValueError(
            "outputs must be a tuple (logits, embedding), of a model that exposes its embedding; "
            f"got {came}"
        )
    logits, embedding = outputs[:2]
    shape = jnp.shape(embedding)
    if len(shape) < 2 or shape[0] != jnp.shape(logits)[0]:
        raise ValueError(
            f"outputs must hold an embedding of shape ({jnp.shape(logits)[0]}, *dims), a row for "
            f"each row of logits; got {shape}"
        )
    return jnp.asarray(embedding).reshape(shape[0], -1)


def predicted_class(logits: Float[Array, "*batch classes"]) -> Int[Array, "*batch"]:
    """Class of the largest logit; -1 where logits hold NaN or +inf, which predict nothing.

    A logit of -inf rules its class out. Ties go to the lower index.

    >>> predicted_class(jnp.array([[0.0, 1.0], [jnp.nan, 1.0], [-jnp.inf, 0.0]]))
    Array([ 1, -1,  1], dtype=int32)
    """
    return jnp.where(jnp.all(logits < jnp.inf, -1), jnp.argmax(logits, -1), -1)


def row_keys(key: Array, num_rows: int) -> Array:
    """One key a row: row i of a single key draws from `fold_in(key, i)`.

    Args:
        key: One typed key (`jax.random.key`), or already one a row.
        num_rows: Number of rows.

    Raises:
        ValueError: If the key is missing, a raw integer or array, or of the wrong length.

    >>> row_keys(jax.random.key(0), 3).shape
    (3,)
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        came = type(key).__name__ if not hasattr(key, "dtype") else f"an array of {key.dtype}"
        raise ValueError(f"key must be a typed key, as made by jax.random.key(seed); got {came}")
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            "key must be of the default threefry kind: under vmap, draws of an rbg key depend on "
            "the other rows of the batch"
        )
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))
    if key.shape != (num_rows,):
        raise ValueError(
            f"key must be a single key or one for each of the {num_rows} rows; got {key.shape}"
        )
    return key


@runtime_checkable
class Attack(Protocol):
    """What `evaluate`, `first_success` and `objectives.madry` take for an attack."""

    def __call__(self, logits_fn: LogitsFn, x: Any, y: Any, *, key: Any, ball: Any) -> Array:
        """Return the attacked batch, of the shape of x."""
        ...


class Batch(NamedTuple):
    """A training batch: images, labels, and the row of the training set each came from."""

    x: Array
    y: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]


class Out(NamedTuple):
    """What an objective returns beside the gradients."""

    loss: Array
    model_state: PyTree
    state: PyTree
    metrics: dict[str, Array]


class Objective(NamedTuple):
    """A training method: a pair of pure functions, as in optax.

    Attributes:
        init: `(params, key) -> state`, the state that the method carries between steps.
        value_and_grad: `(params, model_state, state, batch, *, key) -> (Out, grads)`.
    """

    init: Callable[[PyTree, Array], PyTree]
    value_and_grad: Callable[..., tuple[Out, PyTree]]

    @property
    def name(self) -> str:
        """The function that made it, as far as Python tells, for messages."""
        return getattr(self.value_and_grad, "__qualname__", "the objective").split(".<")[0]


@dataclasses.dataclass(frozen=True)
class MarginBound:
    """A deterministic certificate: proved lower bounds on every margin over a threat.

    Attributes:
        margins: `(batch, classes)` float64; `margins[b, i] <= f_y(x') - f_i(x')` for all x' in the
            threat around example b; `+inf` at `i = y`, `-inf` where nothing could be proved.
        norm: Norm of the threat the bound speaks of.
        eps: Its radius.
        method: Name of the bound.
        proof: Why it holds, in words: what it relaxes, where rounding is accounted for.
        box: Pixel range that the bound takes for granted; None where it needs none.
        gap: `(batch, classes)` by how much an exact solution of the same relaxation could at most
            raise each margin, for bounds that an iterative solver finds; None for closed forms.
    """

    margins: np.ndarray
    norm: str
    eps: float
    method: str
    proof: str
    box: tuple[float, float] | None = None
    gap: np.ndarray | None = None

    @property
    def certified(self) -> np.ndarray:
        """`(batch,)` bool: true only where every margin is proved positive."""
        return np.all(self.margins > 0, axis=1)  # NaN compares false: a doubt is no certificate


@dataclasses.dataclass(frozen=True)
class SmoothedRadius:
    """A probabilistic certificate: l2 radii within which a smoothed classifier keeps its class.

    For each image by itself, the claim fails with probability at most `alpha` over the noise that
    was drawn. It is about the smoothed classifier, which gives the class that the noisy classifier
    gives most often; not about the classifier without noise, and not about finitely many votes.

    Attributes:
        radii: `(batch,)` float64 radius in pixel units by name of the bound, all from the same
            samples; 0 where abstained.
        bound: Which of them is the claim.
        winner: `(batch,)` the class that the votes are for, also where abstained.
        counts: `(batch, classes)` votes among the n samples that the ends below rest on.
        p1_low: `(batch,)` lower end of the winner's probability under noise.
        p2_high: `(batch,)` upper end of every other class's, and of no class at all.
        sigma: Standard deviation of the noise.
        alpha: Probability with which the claim may fail.
        n: Samples an image that the ends rest on, beside any that chose the winner beforehand.
        interval: Name of the interval that gave the ends.
        least_n: Least n that could certify anything, when all samples agree.
        lipschitz: Lipschitz constant in l2 of what stands before the noise.
        proof: What is claimed and why, in words.
        norm: Norm of the radii.
    """

    radii: dict[str, np.ndarray]
    bound: str
    winner: np.ndarray
    counts: np.ndarray
    p1_low: np.ndarray
    p2_high: np.ndarray
    sigma: float
    alpha: float
    n: int
    interval: str
    least_n: int
    lipschitz: float
    proof: str
    norm: str = "l2"

    @property
    def radius(self) -> np.ndarray:
        """`(batch,)` float64: the claimed radius, 0 where abstained."""
        return self.radii[self.bound]

    @property
    def abstain(self) -> np.ndarray:
        """`(batch,)` bool: the samples do not tell which class wins."""
        return ~(self.p1_low > self.p2_high)

    @property
    def prediction(self) -> np.ndarray:
        """`(batch,)` the class that wins; -1 where abstained."""
        return np.where(self.abstain, -1, self.winner)

    @property
    def method(self) -> str:
        """Name of the bound and of its interval."""
        return f"smoothing, {self.bound}, {self.interval}"

    def certified(self, y: Labels, eps: float) -> np.ndarray:
        """`(batch,)` bool: class y at every image within eps, the sphere of that radius included.

        So the radius must exceed eps: at its very end the theorems allow a tie.
        """
        return (self.prediction == np.asarray(y)) & (self.radius > eps)


class Finding(NamedTuple):
    """A measured doubt about an evaluation.

    Attributes:
        name: Short identifier.
        value: What was measured.
        threshold: What it was compared with.
        examples: Rows it rests on (at most the first ten).
        meaning: What it says about the numbers, for someone who never read the papers.
        cure: What to try.
        severity: "warning" where numbers must not be believed before it is cured; "note" where it
            is something to know of the model, and its numbers may be right.
    """

    name: str
    value: float
    threshold: float
    examples: list[int]
    meaning: str
    cure: str
    severity: Literal["note", "warning"] = "warning"
