"""The user's mistakes, found before they cost a run: each raises a `ValueError` that says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def images_and_labels(data: Any) -> tuple[Any, Any]:
    """The two of `(x, y)`, or of what `jaxrobust.data.load` returns; refuse anything else."""
    if hasattr(data, "x") and hasattr(data, "y"):
        return data.x, data.y
    if not isinstance(data, tuple | list) or len(data) != 2:
        came = type(data).__name__ + (f" of {len(data)}" if hasattr(data, "__len__") else "")
        raise ValueError(
            f"data must be (x, y), images and labels, or what jaxrobust.data.load returns; got "
            f"a {came}"
        )
    return data[0], data[1]


def check_images(x: Any, box: tuple[float, float], name: str = "x") -> None:
    """Refuse images that are not finite floats within the box, one a row.

    Dtype and rank are checked always, values where they are known (not under tracing).
    """
    least, most = box
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"{name} must be an array of images; got {type(x).__name__}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating point in [{least:g}, {most:g}]; got {x.dtype} "
            "(divide 0-255 images by 255)"
        )
    if x.ndim < 2:
        raise ValueError(f"{name} must be a batch of shape (batch, *dims); got shape {x.shape}")
    if x.shape[0] == 0 or isinstance(x, jax.core.Tracer):
        return
    values = np.asarray(x)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        raise ValueError(f"{name} must be finite; rows {_rows(bad)} hold NaN or infinite values")
    if low < least or high > most:
        hint = "; are these 0-255 images? Divide by 255" if high > 1.5 * most else ""
        raise ValueError(
            f"{name} must lie in the box [{least:g}, {most:g}]; "
            f"got values from {low:g} to {high:g}{hint}"
        )


def check_precision(x: Any, name: str = "x") -> None:
    """Refuse images of floats too coarse for searches and distances."""
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{name} must be float32 or float64, so that distances can be judged; got {x.dtype} "
            "(a model of less precision may cast its input itself)"
        )


def check_labels(y: Any, num_rows: int, num_classes: int | None = None, name: str = "y") -> None:
    """Refuse labels that are not one integer class a row, in range where that is known."""
    if not hasattr(y, "dtype") or not hasattr(y, "shape"):
        raise ValueError(f"{name} must be an array of integer labels; got {type(y).__name__}")
    if y.ndim == 2 and y.shape[0] == num_rows and y.shape[1] > 1:
        raise ValueError(
            f"{name} must hold integer labels of shape ({num_rows},); got shape {y.shape}, "
            f"which looks one-hot: pass {name}.argmax(-1)"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{name} must hold integer labels; got {y.dtype}")
    if y.shape != (num_rows,):
        raise ValueError(
            f"{name} must have one label for each of the {num_rows} images; got shape {y.shape}"
        )
    if num_rows == 0 or isinstance(y, jax.core.Tracer):
        return
    labels = np.asarray(y)  # known, though a program that is being traced may close over it
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        accepted = "at least 0" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(f"{name} must hold labels {accepted}; got labels from {low} to {high}")


def check_target(target: Any, y: Any, num_classes: int) -> None:
    """Refuse wanted classes that are no labels, or the true ones, which leave nothing to seek."""
    check_labels(target, len(y), num_classes, "target")
    if isinstance(target, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        return
    same = np.flatnonzero(np.asarray(target) == np.asarray(y))
    if same.size:
        raise ValueError(
            f"target must differ from y, the true labels; in rows {_rows(same)} they are the same"
        )


def check_radius(value: Any, name: str, num_rows: int | None = None) -> None:
    """Refuse a radius or step that is no finite number >= 0, or neither scalar nor one a row."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    shape = jnp.shape(value)
    if shape not in ((), (num_rows,)):
        raise ValueError(f"{name} must be a scalar or one number for each row; got shape {shape}")
    if isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(value)
    if not (np.all(np.isfinite(values)) and np.all(values >= 0)):
        raise ValueError(f"{name} must be finite and at least 0; got {value}")


def check_sigma(value: Any, box: tuple[float, float] | None = None) -> None:
    """Refuse a standard deviation that is not one positive number, or far wider than the box."""
    if np.ndim(value) != 0 or not np.issubdtype(np.asarray(value).dtype, np.number):
        raise ValueError(f"sigma must be one number; got {value!r}")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"sigma must be finite and positive; got {value}")
    if box is not None and value > 2 * (box[1] - box[0]):
        raise ValueError(
            f"sigma must be in the units of x, whose box is [{box[0]:g}, {box[1]:g}], and at "
            f"most twice its width; got {value:g}: was it meant for 0-255 images? Divide by 255"
        )


def check_temperature(value: Any) -> None:
    """Refuse a softmax temperature that is not one positive, finite number."""
    number = isinstance(value, (int, float, np.number, jax.Array)) and jnp.ndim(value) == 0
    if isinstance(value, bool) or not number or not known(value, lambda t: 0 < t < np.inf):
        raise ValueError(f"temperature must be a positive, finite number; got {value!r}")


def known(value: Any, holds: Callable[[Any], Any]) -> bool:
    """Whether something holds of a number, or the number is traced and nobody can tell."""
    return isinstance(value, jax.core.Tracer) or bool(holds(value))


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Refuse a count that is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def check_takes(
    function: Any, names: tuple[str, ...], hint: str, name: str = "attack"
) -> frozenset[str]:
    """Refuse a function that does not take these arguments; returns all that it takes by name."""
    try:
        parameters = inspect.signature(function).parameters if callable(function) else {}
    except (TypeError, ValueError):  # not every callable has one
        return frozenset(names)
    kinds = {one.kind for one in parameters.values()}
    if not parameters.keys() >= set(names) and inspect.Parameter.VAR_KEYWORD not in kinds:
        wanted = " and ".join(f"{one}=" for one in names)
        boxed = "ball" in names and "box" in parameters
        more = "; a minimum-norm attack must be wrapped in attacks.against" if boxed else ""
        raise ValueError(f"{name} must take {wanted}, {hint}; got {function!r:.60}{more}")
    return frozenset(parameters)


def check_attack(attack: Any, name: str = "attack") -> None:
    """Refuse what is no attack of the common form."""
    check_takes(attack, ("ball",), "as a function of (logits_fn, x, y, *, key, ball)", name)


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def output_shapes(model: Callable[..., Any], *args: Any) -> Any:
    """Shapes of what a model returns; refuse a model that is not written for JAX."""
    try:
        return jax.eval_shape(model, *args)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            "logits_fn must be a function of JAX arrays, which can be traced; got one that turns "
            "them into NumPy's: put it into jax.pure_callback(..., vmap_method='sequential'), or "
            "'expand_dims' if it takes axes in front (attacks without gradients and "
            "jaxrobust.diagnose do not ask for its derivative)"
        ) from error


def check_logits(shape: Any, num_rows: int) -> int:
    """Number of classes of a model's output, or an error where it is no batch of logits."""
    dims = getattr(shape, "shape", None)
    if dims is None or len(dims) != 2 or dims[0] != num_rows or dims[1] < 2:
        raise ValueError(
            f"logits_fn must return logits of shape ({num_rows}, classes) for a batch of "
            f"{num_rows}; got {dims if dims is not None else type(shape).__name__}"
        )
    return dims[1]


def _rows(rows: np.ndarray) -> str:
    shown = ", ".join(str(row) for row in rows[:5])
    return shown + (", ..." if rows.size > 5 else "")
