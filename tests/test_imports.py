"""What importing the library costs, and what it must not need."""

import os
import subprocess
import sys

import pytest


def run(code):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def imported():
    """Five times: seconds of what it stands on, seconds of the rest, and all modules."""
    timed = (
        "import sys, time; t = time.perf_counter(); import jax, flax, optax\n"
        "u = time.perf_counter(); import jaxrobust\n"
        "print(u - t, time.perf_counter() - u, *sys.modules)"
    )
    found = [run(timed).split() for _ in range(5)]
    return [(float(theirs), float(rest), modules) for theirs, rest, *modules in found]


def test_takes_under_half_as_long_again_as_what_it_stands_on(imported):
    """The ratio of the medians of five processes."""
    theirs = sorted(theirs for theirs, _, _ in imported)
    ours = sorted(theirs + rest for theirs, rest, _ in imported)
    assert ours[2] < 1.5 * theirs[2]


@pytest.mark.parametrize(
    "package",
    [
        "cvxpy",
        "diffrax",
        "tensorflow_datasets",
        "matplotlib",
        "sklearn",
        "orbax.checkpoint",
        "jinja2",
        "tyro",
    ],
)
def test_is_not_imported_before_it_is_used(package, imported):
    for _, _, modules in imported:
        assert "jaxrobust" in modules
        assert package not in modules


def test_works_where_optional_packages_are_missing():
    """As on a machine that has JAX, Flax and optax only."""
    run(
        "import sys\n"
        "for name in ('cvxpy', 'diffrax', 'tensorflow_datasets', 'matplotlib', 'jinja2', 'tyro'):\n"
        "    sys.modules[name] = None\n"
        "import jax, jaxrobust as jr, numpy as np\n"
        "x = np.full((2, 3), 0.5, np.float32)\n"
        "y = np.array([0, 1])\n"
        "jr.evaluate(lambda x: x[:, :2], (x, y), attacks={'pgd': jr.attacks.pgd},\n"
        "            ball=jr.Ball('linf', 0.1), key=jax.random.key(0), batch_size=2)\n"
        "jr.data.load('digits', 'test')\n"
    )
