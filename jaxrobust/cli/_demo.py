"""`jaxrobust demo`: two classifiers, attacked and bounded, on one page."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax

from jaxrobust import data, evaluation, report
from jaxrobust.checks import check_count
from jaxrobust.cli import _common as common
from jaxrobust.cli._bounds import certificates
from jaxrobust.cli._common import ModelName
from jaxrobust.cli._train import Train
from jaxrobust.threat import Ball


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train a classifier naturally and adversarially, attack and bound both, write a report.

    Stopped and started again with the same arguments it goes on where it was.
    """

    data: str = "digits"
    """digits (embedded), or any prepared TFDS image set such as mnist (see TFDS_DATA_DIR)."""
    out: Path = Path("jaxrobust-report")
    """Folder of the report."""
    model: ModelName = "mlp"
    """Network; madry_cnn has pooling, which the bounds cannot read."""
    eps_linf: float | None = None
    """Radius in linf, of [0, 1]; by the data set where not given."""
    eps_l2: float | None = None
    """Radius in l2; by the data set where not given."""
    num_epochs: int | None = None
    """Passes over the training images; 40 for digits, 5 for larger sets where not given."""
    num_examples: int = 1000
    """Most test images to attack."""
    seed: int = 0
    """Seed of everything: the same seed gives the same numbers."""

    def run(self) -> None:
        """Train, attack, bound, report."""
        check_count(self.num_examples, "--num-examples")
        common.check_out(self.out)
        settings = dataclasses.asdict(self) | {"out": ""}
        work = self.out / f"unfinished-{common.fingerprint(settings)}"
        test = data.load(self.data, "test")
        test = test._replace(x=test.x[: self.num_examples], y=test.y[: self.num_examples])
        entries = [
            self._entry("natural", "cross_entropy", test, work),
            self._entry("adversarial", "madry", test, work),
        ]
        document = report.Document(
            title=f"How robust is a classifier of {self.data}?",
            command=common.command_line(),
            entries=entries,
            notes=self._notes(len(test.y)),
            created=common.made_at(),
        )
        report.save(document, self.out)
        shutil.rmtree(work, ignore_errors=True)
        report.print_tables(document)
        common.announce(self.out)

    def _notes(self, num_test: int) -> list[str]:
        return [
            f"Both classifiers are of the architecture {self.model}, trained on the {self.data} "
            f"training images and attacked on {num_test} test images; pixels lie in [0, 1].",
            "A demonstration at small scale: the schedules are this project's choice, and the "
            "numbers are not those of any paper.",
        ]

    def _entry(self, name: str, objective: str, test: data.Dataset, work: Path) -> report.Entry:
        balls = {
            "linf": Ball("linf", self._eps("linf", self.eps_linf)),
            "l2": Ball("l2", self._eps("l2", self.eps_l2)),
        }
        epochs = 40 if self.data == "digits" else 5
        num_epochs = epochs if self.num_epochs is None else self.num_epochs
        folder = work / name
        trainer = Train(
            out=folder / "training", data=self.data, model=self.model,
            objective=objective,  # pyright: ignore[reportArgumentType]
            eps=balls["linf"].eps,  # pyright: ignore[reportArgumentType]
            num_epochs=num_epochs, batch_size=64 if self.data == "digits" else 128,
            seed=self.seed, resume=True,
        )  # fmt: skip
        fitted, module = trainer.fit()
        variables = {"params": fitted.params}
        logits_fn = jax.tree_util.Partial(module.apply, variables)
        layers = common.explicit(module, variables)
        reports, curves = {}, {}
        for norm, ball in balls.items():
            key = common.key_of(self.seed, f"evaluate {norm}")
            bounds = certificates(layers, norm)
            reports[f"{norm} {ball.eps:g}"] = evaluation.evaluate(
                logits_fn, (test.x, test.y), attacks=common.standard_attacks(40, 5), ball=ball,
                key=key, certificates=bounds, keep_images=64, progress=True,
                directory=folder / norm,
            )  # fmt: skip
            curves[norm] = common.curve(
                logits_fn, bounds, test, reports[f"{norm} {ball.eps:g}"], ball, key, num_steps=20,
                progress=True,
                directory=folder / f"{norm}-curve",
            )  # fmt: skip
        how = (
            "trained naturally, by cross-entropy on clean images"
            if objective == "cross_entropy"
            else f"trained adversarially (Madry): PGD, {trainer.num_steps} steps, "
            f"linf {balls['linf'].eps:g}"
        )
        description = f"{self.model}, {how}; {num_epochs} epochs of Adam"
        return report.Entry(name, description, reports, curves, fitted.metrics)

    def _eps(self, norm: str, given: float | None) -> float:
        return common.default_eps(self.data, norm) if given is None else given
