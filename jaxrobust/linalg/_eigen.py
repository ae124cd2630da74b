"""Top eigenpairs and singular triples of maps that are given by their products only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float

from jaxrobust.checks import check_count
from jaxrobust.loops import at_most

Product = Callable[[tuple[Array, ...], Array], Array]
Pair = tuple[Array, Array, Array, Array]

# A GPU's default may keep ten bits of the factors.
_PRECISE = "highest"
_matmul = functools.partial(jnp.matmul, precision=_PRECISE)
_inner = functools.partial(jnp.vdot, precision=_PRECISE)


class Lanczos(NamedTuple):
    """`B basis' = basis' T`, up to a remainder in the last column.

    Args:
        diagonal: Of the tridiagonal matrix T.
        off_diagonal: Of T, at least 0.
        basis: Orthonormal rows.
        remainder: Norm of the remainder: the Ritz pair that a unit eigenvector s of T stands for
            has the residual `remainder * abs(s[-1])`.
    """

    diagonal: Float[Array, " steps"]
    off_diagonal: Float[Array, " steps-1"]
    basis: Float[Array, "steps n"]
    remainder: Float[Array, ""]


class Eigenpair(NamedTuple):
    """An eigenvalue, its unit vector, and `||B vector - value vector||_2`."""

    value: Float[Array, ""]
    vector: Float[Array, " n"]
    residual: Float[Array, ""]


class Singular(NamedTuple):
    """A singular value with its unit vectors: `A right = value left`."""

    value: Float[Array, ""]
    left: Float[Array, "*outputs"]
    right: Float[Array, "*inputs"]


def lanczos(matvec: Callable[[Array], Array], v0: Float[Array, " n"], num_steps: int) -> Lanczos:
    """Tridiagonal form of a symmetric operator on a Krylov space.

    Each new vector is orthogonalised twice against all earlier ones. Where the second pass halves
    it once more, it was rounding and the space is invariant: the off-diagonal entry is 0, and the
    next vector is what the basis leaves of the coordinate that it covers least, which is never
    nothing. So T is always a compression of the operator, and its eigenvalues exceed the
    operator's largest by rounding at most.

    Args:
        matvec: Symmetric linear map of vectors of shape `(n,)`. Its matrix products run in the
            highest precision unless they ask for another.
        v0: Start, float32 or float64, of any scale; zero stands for a fixed vector.
        num_steps: Products to make; at most n are.

    Returns:
        `min(num_steps, n)` steps. No reverse derivatives: for those see `top_eigenpair`.

    Raises:
        ValueError: If v0 or what the operator returns is misshapen or of a wrong type, or if
            `num_steps < 1`.

    References:
        Parlett, The Symmetric Eigenvalue Problem, 1998, section 6.9 ("twice is enough") and
        chapter 13.

    >>> form = lanczos(lambda v: jnp.array([3.0, 1.0]) * v, jnp.ones(2), 2)
    >>> print(form.diagonal.round(3), form.off_diagonal.round(3))
    [2. 2.] [1.]
    """
    product, consts, start = _operator(matvec, v0, num_steps)
    return _lanczos(functools.partial(product, consts), start, num_steps)


def top_eigenpair(
    matvec: Callable[[Array], Array], v0: Float[Array, " n"], *, num_steps: int, tol: float
) -> Eigenpair:
    """The largest eigenvalue of a symmetric operator and its unit vector, to be differentiated.

    Lanczos, and a dense eigendecomposition where its residual is too large. The value is the
    vector's Rayleigh quotient, so **it comes from below**; `proved_upper` proves an upper side.

    Derivatives reach all that `matvec` closes over: `dvalue = v'(dB)v`, and `(value I - B) dv =
    (I - vv')(dB)v` by conjugate gradients, only where the vector's is asked for. They are
    differentiable in turn; v0 and the residual are constants. All this is for a simple eigenvalue.
    At a multiple one the value's first derivative is still that of a subgradient; the vector has no
    derivative there, and what comes in its place is finite, large, and means nothing.

    Args:
        matvec: As in `lanczos`. It may close over anything.
        v0: As in `lanczos`: the last vector, where the operator has moved little.
        num_steps: Products to make; at most n are, and one more for the residual.
        tol: Largest residual to accept, relative to the largest Ritz value in modulus. Above it, or
            where it is not finite, the operator is made dense by n products; in a `vmap` this is
            done when some row needs it, and costs the others little. With `inf` no such code is
            compiled.

    Returns:
        The pair; the vector's sign is arbitrary.

    Raises:
        ValueError: As `lanczos`, or if tol is negative or NaN.

    References:
        Magnus, On differentiating eigenvalues and eigenvectors, Econometric Theory 1 (1985),
        Theorem 1; Overton, Large-scale optimization of eigenvalues, SIAM J. Optim. 2 (1992).

    >>> top = lambda c: top_eigenpair(lambda v: c * v, jnp.ones(3), num_steps=3, tol=1e-3).value
    >>> print(jax.grad(top)(jnp.array([1.0, 5.0, 2.0])).round(4))
    [0. 1. 0.]
    """
    if not tol >= 0.0:
        raise ValueError(f"tol must be at least 0; got {tol}")
    product, consts, start = _operator(matvec, v0, num_steps)
    start = jax.lax.stop_gradient(start)
    return Eigenpair(*_eigenpair(product, num_steps, float(tol), consts, start)[:3])


def power_iteration(
    matvec: Callable[[Array], Array], v0: Float[Array, "*inputs"], num_steps: int
) -> Singular:
    """The largest singular value of a linear map, from below, by products with it in turn.

    Args:
        matvec: Linear map A of arrays of v0's shape to arrays of one shape; its transpose is
            derived. Precision as in `lanczos`.
        v0: Start: the last `right`, where the map has moved little; zero stands for a fixed array.
        num_steps: Products with `A'A`.

    Returns:
        The triple. Its vectors are constants to differentiation: the value's derivative is
        `left'(dA)right`, right once they have converged, and **first derivatives only** are right.
        The zero map has the value 0 and the derivative 0.

    Raises:
        ValueError: If v0 is neither float32 nor float64, or `num_steps < 1`.

    References:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018,
        Algorithm 1.

    >>> largest = power_iteration(lambda x: jnp.array([3.0, 1.0]) * x, jnp.ones(2), 20)
    >>> print(largest.right.round(3), f"{largest.value:.3f}")
    [1. 0.] 3.000
    """
    product, consts, start = _closed(matvec, v0, num_steps)
    forward = functools.partial(product, jax.lax.stop_gradient(consts))
    start = jax.lax.stop_gradient(start)
    transpose = jax.linear_transpose(forward, start)

    def step(_: Any, right: Array) -> Array:
        return _unit(*transpose(_unit(forward(right))[0]))[0]

    right = jax.lax.fori_loop(0, num_steps, step, _started(start))
    left = _unit(forward(right))[0]
    return Singular(_inner(left, product(consts, right)), left, right)


def _lanczos(product: Callable[[Array], Array], start: Array, num_steps: int) -> Lanczos:
    steps = min(num_steps, start.size)

    def rest(vector: Array, basis: Array) -> Array:
        return vector - _matmul(_matmul(basis, vector), basis)

    def step(carry: tuple[Array, Array], index: Array) -> tuple[Any, tuple[Array, Array]]:
        basis, vector = carry
        basis = basis.at[index].set(vector)
        image = product(vector)
        once = rest(image, basis)
        twice, size = _unit(rest(once, basis))
        invariant = ~(size > 0.5 * _unit(once)[1])

        def fresh(invariant: Array, _: Array) -> Array:
            known = jnp.where(invariant, basis, 0)
            least = jnp.argmin(jnp.sum(jnp.square(known), axis=0))
            unit = (jnp.arange(start.size) == least).astype(start.dtype)
            return _unit(rest(rest(unit, known), known))[0]

        after = _where_needed(invariant, fresh, twice)
        return (basis, after), (_inner(vector, image), jnp.where(invariant, 0, size))

    empty = jnp.zeros_like(start, shape=(steps, start.size))
    (basis, _), (diagonal, sizes) = jax.lax.scan(
        step, (empty, _started(start)), jnp.arange(steps)
    )  # fmt: skip
    return Lanczos(diagonal, sizes[:-1], basis, sizes[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _eigenpair(
    product: Product, num_steps: int, tol: float, consts: tuple[Array, ...], start: Array
) -> Pair:
    """Value, vector, residual, and the largest Ritz value in modulus."""
    form = _lanczos(functools.partial(product, consts), start, num_steps)
    tridiagonal = jnp.diag(form.diagonal) + jnp.diag(form.off_diagonal, 1)
    ritz, vectors = jnp.linalg.eigh(tridiagonal + jnp.diag(form.off_diagonal, -1))

    def measured(vector: Array, values: Array) -> Pair:
        vector = _unit(vector)[0]
        image = product(consts, vector)
        value = _inner(vector, image)
        return value, vector, _unit(image - value * vector)[1], jnp.max(jnp.abs(values))

    def dense(needed: Array, _: Pair) -> Pair:
        # A row that needs nothing decomposes zero.
        unit = jnp.where(needed, jnp.eye(start.size, dtype=start.dtype), 0)
        values, vectors = jnp.linalg.eigh(jax.vmap(functools.partial(product, consts))(unit))
        return measured(vectors[:, -1], values)

    pair = measured(_matmul(vectors[:, -1], form.basis), ritz)
    if math.isinf(tol):
        return pair
    return _where_needed(~(pair[2] <= tol * pair[3]), dense, pair)


@_eigenpair.defjvp
def _eigenpair_jvp(
    product: Product, num_steps: int, tol: float, primals: Any, tangents: Any
) -> tuple[Pair, Pair]:
    consts, start = primals
    # The rule's own output, so that differentiating the rule comes here again.
    pair = _eigenpair(product, num_steps, tol, consts, start)
    value, vector, residual, scale = pair
    change = jax.jvp(lambda *c: product(c, vector), consts, tangents[0])[1]
    value_change = _inner(vector, change)

    precision = jnp.finfo(start.dtype).eps
    size = jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1))
    # Positive definite although the value comes from below; and no division by 0 at a tie.
    lift = jax.lax.stop_gradient(residual) + 16 * precision * size

    def deflated(x: Array) -> Array:
        along = _inner(vector, x) * vector
        return (value + lift) * x - product(consts, x) + size * along

    def solve(operator: Callable[[Array], Array], right: Array) -> Array:
        x, _ = cg(operator, right, tol=4 * float(precision), maxiter=2 * start.size)
        return jnp.where(jnp.isfinite(x), x, 0)

    vector_change = jax.lax.custom_linear_solve(
        deflated, change - value_change * vector, solve, symmetric=True
    )
    constant = jnp.zeros_like(residual)
    return pair, (value_change, vector_change, constant, constant)


def _where_needed(needed: Bool[Array, ""], repair: Callable[[Array, Any], Any], state: Any) -> Any:
    """`repair(needed, state)` where needed, and only then computed, under `vmap` too.

    All costly work must depend on the arguments: XLA moves what does not out of the loop.
    """

    def turn(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        # Negated, for what never changes would be moved out too.
        return ~carry[0], repair(*carry)

    return at_most(1, lambda carry: carry[0], turn, (needed, state))[1]


def _operator(
    matvec: Callable[[Array], Array], v0: Array, num_steps: int
) -> tuple[Product, tuple[Array, ...], Array]:
    if jnp.ndim(v0) != 1 or jnp.size(v0) == 0:
        raise ValueError(f"v0 must be a vector of shape (n,), n >= 1; got shape {jnp.shape(v0)}")
    product, consts, start = _closed(matvec, v0, num_steps)
    result = jax.eval_shape(product, consts, start)
    if result.shape != start.shape or result.dtype != start.dtype:
        raise ValueError(
            f"matvec must return what it is given, {start.dtype} of shape {start.shape}; "
            f"got {result.dtype} of shape {result.shape}"
        )
    return product, consts, start


def _closed(
    matvec: Callable[[Array], Array], v0: Array, num_steps: int
) -> tuple[Product, tuple[Array, ...], Array]:
    """A map with all that it closes over as arguments, and a start that varies as its images do.

    Not `jax.closure_convert`, which leaves integers inside: a label of an outer `jit` or `scan`
    would escape from it.
    """
    check_count(num_steps, "num_steps")
    if v0.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"v0 must be float32 or float64; got {v0.dtype}")
    with jax.default_matmul_precision(_PRECISE):
        start = v0 + jnp.zeros_like(matvec(v0), shape=(), dtype=v0.dtype)
        closed = jax.make_jaxpr(matvec)(start)

    def product(consts: tuple[Array, ...], vector: Array) -> Array:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(vector)[0]

    return product, tuple(jnp.asarray(const) for const in closed.consts), start


def _started(start: Array) -> Array:
    """Of length 1; for zero a vector that nothing in practice is orthogonal to."""
    vector, size = _unit(start)
    fixed = jnp.cos(jnp.arange(start.size, dtype=start.dtype)).reshape(start.shape)
    return jnp.where(size > 0, vector, _unit(fixed)[0])


def _unit(x: Array) -> tuple[Array, Array]:
    """A vector over its 2-norm, and the norm without overflow; zeros of zero, NaN of NaN."""
    largest = jnp.max(jnp.abs(x))
    none = largest < jnp.finfo(x.dtype).tiny
    scale = jnp.where(none, 1, largest)
    scaled = jnp.where(none, 0, x / scale)
    length = jnp.linalg.norm(scaled.ravel())
    return scaled / jnp.where(none, 1, length), scale * length
