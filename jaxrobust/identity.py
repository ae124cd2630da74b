"""What a run is of: checksums by which a resumed run knows that nothing was changed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def digest(arrays: Any) -> str:
    """A checksum of a tree of arrays: shapes, dtypes and numbers.

    >>> digest([np.zeros(2)]) == digest([np.zeros(2)]) != digest([np.ones(2)])
    True
    """
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        array = np.asarray(leaf)
        total.update(f"{array.shape}{array.dtype}".encode())
        for start in range(0, max(1, len(array) if array.ndim else 1), 1024):
            rows = array[start : start + 1024] if array.ndim else array
            total.update(np.ascontiguousarray(rows).tobytes())
    return total.hexdigest()[:16]


def fingerprint(thing: Any) -> str:
    """A checksum of a function: its code, its closure, and the arrays and settings bound to it.

    Looks through `functools.partial`, `jax.tree_util.Partial`, methods, closures and containers.
    What it cannot look into counts by its `repr` without addresses.

    >>> a, b = (functools.partial(sorted, reverse=r) for r in (True, False))
    >>> fingerprint(a) == fingerprint(functools.partial(sorted, reverse=True)) != fingerprint(b)
    True
    """
    return hashlib.sha256(repr(_described(thing, frozenset())).encode()).hexdigest()[:16]


def _described(thing: Any, above: frozenset[int]) -> Any:
    if id(thing) in above:
        return "itself"
    above = above | {id(thing)}
    inside = functools.partial(_described, above=above)
    if isinstance(thing, (jax.Array, np.ndarray, np.generic)):
        if jnp.issubdtype(thing.dtype, jax.dtypes.prng_key):
            thing = jax.random.key_data(thing)  # pyright: ignore[reportArgumentType]
        return digest(thing)
    if isinstance(thing, functools.partial):
        keywords = {name: inside(value) for name, value in sorted(thing.keywords.items())}
        return ("partial", inside(thing.func), [inside(value) for value in thing.args], keywords)
    if isinstance(thing, types.MethodType):
        return ("method", inside(thing.__func__), inside(thing.__self__))
    if isinstance(thing, types.FunctionType):
        code = thing.__code__
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        cells = [inside(cell.cell_contents) for cell in thing.__closure__ or ()]
        body = (code.co_code.hex(), repr(constants), code.co_names)
        return ("function", thing.__module__, thing.__qualname__, body, cells)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        shown = [f.name for f in dataclasses.fields(thing) if f.repr]
        return (type(thing).__qualname__, [(k, inside(getattr(thing, k, None))) for k in shown])
    if isinstance(thing, dict):
        return [(repr(key), inside(value)) for key, value in thing.items()]
    if isinstance(thing, (list, tuple)):
        return [inside(value) for value in thing]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
