"""`jaxrobust certify`: one network, several certificates, several radii."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxrobust import certify, data, identity
from jaxrobust.checks import check_count, check_radius
from jaxrobust.cli import _certificates as results
from jaxrobust.cli._bounds import BOUNDS, GAP
from jaxrobust.cli._certificates import Solved
from jaxrobust.cli._common import check_out
from jaxrobust.cli._evaluate import Evaluate
from jaxrobust.cli._npz import read_layers
from jaxrobust.layers import Layer
from jaxrobust.types import MarginBound


@dataclasses.dataclass(frozen=True)
class Certify:
    """Bound a network with several certificates over several linf radii.

    Give --layers for weights of your own, or --checkpoint for a folder made by `jaxrobust train`.
    Writes certify.json, margins.npz, certified.svg and, for sdp, sdp_constants.npz.
    """

    checkpoint: Path | None = None
    """Folder made by `jaxrobust train`; madry_cnn has pooling, which no bound can read."""
    layers: Path | None = None
    """An npz file with arrays 0.kernel, 0.bias, 1.kernel, ... in the order of the layers (gaps in
    the numbers mean nothing). A kernel (inputs, outputs) is a dense layer, one (height, width,
    inputs, outputs) a convolution over NHWC images, which may have N.strides (two integers; 1, 1)
    and N.padding (SAME or VALID; SAME). The activation stands between layers, and images are
    flattened in row-major order in front of the first dense one."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Activation between the layers of --layers."""
    data: str | None = None
    """digits, mnist or another prepared TFDS image set; the checkpoint's own, or digits, where not
    given."""
    split: str = "test"
    """Split in TFDS syntax."""
    num_examples: int = 1000
    """Most images to bound, the first of the split."""
    eps: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    """Linf radii, of [0, 1]."""
    methods: Annotated[
        tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all that apply)")
    ] = ()
    """Some of sdp (at most one hidden layer, dense), lp (ReLU), spectral, frobenius, interval."""
    out: Path = Path("jaxrobust-certificates")
    """Folder of the results. Constants of sdp found there are proved again, not solved again, if
    they are this network's."""

    def run(self) -> None:
        """Bound and report."""
        eps = self._checked()
        name, layers, dataset = self._network()
        test = data.load(dataset, self.split)
        x, y = test.x[: self.num_examples], test.y[: self.num_examples]
        clean = _clean(layers, x, y, dataset)
        methods, refused = self._methods(layers, x[:1], y[:1])
        self.out.mkdir(parents=True, exist_ok=True)
        solved: Solved | None = None
        done: list[tuple[MarginBound, float]] = []
        with _progress() as step:
            if "sdp" in methods:
                step("sdp: the programs of all pairs of classes", None)
                solved = _constants(layers, self.out / results.CONSTANTS_NAME)
            for method in methods:
                given = {"constants": solved.constants} if solved and method == "sdp" else {}
                for radius in eps:
                    step(f"{method} at {radius:g}", len(done) / (len(methods) * len(eps)))
                    start = time.perf_counter()
                    bound = BOUNDS[method](layers, x, y, eps=radius, **given)
                    done.append((bound, time.perf_counter() - start))
        found = results.summary(clean, eps, [bound for bound, _ in done])
        about = {
            "network": {
                "name": name,
                "layers": [results.words(layer) for layer in layers],
                "checksum": identity.fingerprint(layers),
            },
            "data": {"name": dataset, "split": self.split, "num_examples": len(y)},
            "sdp_constants": solved and solved.described(),
            "not_applicable": refused,
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()},
        }
        results.write(self.out, found, done, y, about)
        results.announce(self.out, found, solved, {} if self.methods else refused)

    def _checked(self) -> list[float]:
        """The radii, rising."""
        check_count(self.num_examples, "--num-examples")
        check_out(self.out)
        if not self.eps:
            raise ValueError("--eps must be at least one radius")
        for radius in self.eps:
            check_radius(radius, "--eps")
        for method in self.methods:
            if method not in BOUNDS:
                raise ValueError(f"--methods must be some of {', '.join(BOUNDS)}; got {method!r}")
        if (self.layers is None) == (self.checkpoint is None):
            raise ValueError("give either --layers or --checkpoint")
        return sorted(set(self.eps))

    def _network(self) -> tuple[str, list[Layer], str]:
        """Its name, its layers and the data to bound it on."""
        if self.layers is not None:
            layers = read_layers(self.layers, self.activation)
            return self.layers.name, layers, self.data or "digits"
        subject = Evaluate(checkpoint=self.checkpoint, data=self.data)._load()
        if subject.layers is None:
            raise ValueError(
                f"--checkpoint {self.checkpoint} is {subject.name}, which is not made of layers "
                "that bounds can read (it has pooling); train mlp or small_cnn"
            )
        return subject.name, subject.layers, subject.data

    def _methods(self, layers: list[Layer], x: Any, y: Any) -> tuple[list[str], dict[str, str]]:
        """Methods to run, and why the others do not apply; one asked for by name has to."""
        refused = {}
        for method in BOUNDS:
            try:
                if method == "sdp":
                    certify.two_layers(layers)
                else:
                    BOUNDS[method](layers, x, y, eps=0.0)
            except ValueError as error:
                refused[method] = str(error)
        for method in self.methods:
            if method in refused:
                raise ValueError(f"--methods {method} does not apply: {refused[method]}")
        asked = self.methods or BOUNDS
        return [m for m in BOUNDS if m in asked and m not in refused], refused


def _clean(layers: Sequence[Layer], x: Any, y: Any, dataset: str) -> np.ndarray:
    """Which examples are right, proved at radius 0; refuses a network that does not fit."""
    try:
        return certify.interval(layers, x, y, eps=0.0).certified
    except ValueError as error:
        names = ", ".join(type(layer).__name__ for layer in layers)
        raise ValueError(f"{error} (layers: {names}; data: {dataset})") from error


def _constants(layers: Sequence[Layer], path: Path) -> Solved:
    """The file's, proved again, if they are this network's; else solved, and the file written."""
    start = time.perf_counter()
    if path.is_file():
        # Of another network, or damaged, or far from solved: solved, as if there were none.
        with contextlib.suppress(ValueError):
            constants = certify.load_sdp_constants(path, layers)
            if constants.gap <= GAP:
                return Solved(constants, True, time.perf_counter() - start)
    constants = certify.sdp_constants(layers, tol=GAP)
    constants.save(path)
    return Solved(constants, False, time.perf_counter() - start)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """A line with what is done now and how much is behind it; None where that is not known."""
    from rich import get_console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, share: bar.update(
            task, description=what, total=None if share is None else 1.0, completed=share or 0.0
        )
