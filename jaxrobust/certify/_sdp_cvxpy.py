"""The programs of paper 003 as a modelling language has them: an oracle for small networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxrobust.certify import _common
from jaxrobust.certify._pairs import two_layers
from jaxrobust.certify._sdp_proof import pair_matrix
from jaxrobust.layers import Layer


def sdp_cvxpy(
    layers: Sequence[Layer],
    i: int,
    j: int,
    *,
    form: Literal["primal", "dual"] = "dual",
    **options: Any,
) -> float:
    """`max <M_ij, P>` of one pair of classes through cvxpy: not proved, and slow.

    Solve times grow with about the sixth power of the width: meant for `D <= 100`, to check the
    other solvers by.

    Args:
        layers: `Dense, Relu | Sigmoid, Dense`, or one `Dense`.
        i: A class.
        j: Another.
        form: "primal", Eq. 10: maximise `<M, P>` over `P >= 0, diag P <= 1`; "dual", Eq. 14:
            minimise `D lambda_max^+(M - diag c) + sum max(c, 0)` over c.
        options: Handed to `cvxpy.Problem.solve`: a solver and its settings.

    Returns:
        The optimal value that the solver reports.

    Raises:
        ValueError: For another network, or a form or class that does not exist.

    References: paper 003, Eq. 10 and 14.

    >>> from jaxrobust.layers import Dense
    >>> layers = [Dense(np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2))]
    >>> round(sdp_cvxpy(layers, 0, 1), 4)  # 4 |w_i - w_j|_1
    8.0
    """
    import cvxpy as cp

    if form not in ("primal", "dual"):
        raise ValueError(f"form must be primal or dual; got {form!r}")
    network = two_layers(_common.on_host(layers))
    classes = network.last.shape[1]
    for name, value in (("i", i), ("j", j)):
        if not 0 <= value < classes:
            raise ValueError(f"{name} must be a class from 0 to {classes - 1}; got {value}")
    a, _ = pair_matrix(network, i, j)
    rows, total = len(a), sum(a.shape)
    m = np.zeros((total, total))
    m[:rows, rows:], m[rows:, :rows] = a, a.T
    if form == "primal":
        p = cp.Variable((total, total), PSD=True)
        problem = cp.Problem(cp.Maximize(cp.trace(m @ p)), [cp.diag(p) <= 1])
    else:
        c = cp.Variable(total)
        top = cp.pos(cp.lambda_max(m - cp.diag(c)))
        problem = cp.Problem(cp.Minimize(total * top + cp.sum(cp.pos(c))))
    return float(problem.solve(**options))  # pyright: ignore[reportArgumentType]
