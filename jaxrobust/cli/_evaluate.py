"""`jaxrobust evaluate`: somebody's own model, or a checkpoint of ours."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxrobust import data, evaluation, report, train
from jaxrobust.attacks import autoattack_members
from jaxrobust.checks import check_count
from jaxrobust.cli import _common as common
from jaxrobust.cli._bounds import certificates
from jaxrobust.cli._common import NormName
from jaxrobust.layers import Layer
from jaxrobust.threat import Ball
from jaxrobust.types import Attack, LogitsFn, Randomized, as_partial, per_example


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Attack a classifier, bound it where possible, write a report.

    Give --model for your own, or --checkpoint for a folder made by `jaxrobust train`. Stopped and
    started again with the same arguments it goes on where it was.
    """

    model: str | None = None
    """package.module:function; the function returns logits_fn (images in [0, 1], NHWC, to logits),
    or (logits_fn, preprocessing), the latter a function of images applied first."""
    checkpoint: Path | None = None
    """Folder made by `jaxrobust train`."""
    data: str | None = None
    """digits or a prepared TFDS image set; the checkpoint's own, or digits, where not given."""
    split: str = "test"
    """Split in TFDS syntax."""
    num_examples: int = 1000
    """Most images to attack, the first of the split."""
    norm: NormName = "linf"
    """Norm of the threat."""
    eps: float | None = None
    """Its radius, of [0, 1]; where not given, the checkpoint's own, else by the data set."""
    attacks: Literal["pgd", "autoattack"] = "pgd"
    """FGSM, BIM and PGD; or the members of AutoAttack standard, by far stronger and slower ("rand"
    for a randomised model). The curve over eps is PGD's in any case."""
    num_steps: int = 40
    """PGD steps."""
    num_restarts: int = 5
    """PGD restarts."""
    batch_size: int = 256
    """Images at once on each device."""
    out: Path = Path("jaxrobust-report")
    """Folder of the report."""
    seed: int = 0
    """Seed of everything."""

    def run(self) -> None:
        """Evaluate and report."""
        check_count(self.num_examples, "--num-examples")
        common.check_out(self.out)
        subject = self._load()
        logits_fn, layers, dataset = subject.logits_fn, subject.layers, subject.data
        test = data.load(dataset, self.split)
        test = test._replace(x=test.x[: self.num_examples], y=test.y[: self.num_examples])
        fits(subject, test.x[:1])
        known = subject.eps if self.eps is None else self.eps
        eps = common.default_eps(dataset, self.norm) if known is None else known
        ball = Ball(self.norm, eps)
        bounds = certificates(layers, self.norm)
        key = common.key_of(self.seed, f"evaluate {self.norm}")
        settings = dataclasses.asdict(self) | {"out": "", "checkpoint": str(self.checkpoint)}
        work = self.out / f"unfinished-{common.fingerprint(settings)}"
        options: dict[str, Any] = {"batch_size": self.batch_size, "progress": True}
        found = evaluation.evaluate(
            logits_fn, (test.x, test.y), ball=ball, key=key, certificates=bounds,
            attacks=self._attacks(logits_fn), keep_images=64, directory=work / "threat", **options,
        )  # fmt: skip
        curve = common.curve(
            logits_fn, bounds, test, found, ball, key, num_steps=self.num_steps,
            directory=work / "curve", **options,
        )  # fmt: skip
        description = f"evaluated on {len(test.y)} images of {dataset} ({self.split})"
        entry = report.Entry(
            subject.name,
            description,
            {f"{self.norm} {eps:g}": found},
            {self.norm: curve},
            subject.history,
        )
        document = report.Document(
            f"How robust is {subject.name}?", common.command_line(), [entry], [], common.made_at()
        )
        report.save(document, self.out)
        shutil.rmtree(work, ignore_errors=True)
        report.print_tables(document)
        common.announce(self.out)

    def _attacks(self, logits_fn: LogitsFn) -> dict[str, Attack]:
        if self.attacks == "pgd":
            return common.standard_attacks(self.num_steps, self.num_restarts)
        version = "rand" if isinstance(logits_fn, Randomized) else "standard"
        return autoattack_members(version, self.norm)

    def _load(self) -> _Subject:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give either --model or --checkpoint")
        if self.checkpoint is not None:
            return self._checkpoint(self.checkpoint)
        assert self.model is not None
        logits_fn = users_model(self.model)
        return _Subject(logits_fn, None, self.model, self.data or "digits", None, [])

    def _checkpoint(self, folder: Path) -> _Subject:
        path = folder / "model.json"
        if not path.is_file():
            raise ValueError(f"--checkpoint must be a run of jaxrobust train; got {folder}")
        try:
            described = json.loads(path.read_text())
            module = common.build(described["model"], described["num_classes"])
            name = f"{described['model']} ({described['objective']})"
            same, shape = described["norm"] == self.norm, described["image_shape"]
            dataset, eps = described["data"], described["eps"] if same else None
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            history = [json.loads(line) for line in lines]
        except (json.JSONDecodeError, KeyError, OSError) as error:
            raise ValueError(f"{folder} is damaged: {error}") from error
        params, _ = train.restore(folder)
        variables = {"params": jax.tree.map(jax.numpy.asarray, params)}
        return _Subject(
            jax.tree_util.Partial(module.apply, variables), common.explicit(module, variables),
            name, self.data or dataset, eps, history, shape,
        )  # fmt: skip


class _Subject(NamedTuple):
    """What is evaluated."""

    logits_fn: LogitsFn
    layers: list[Layer] | None
    name: str
    data: str
    eps: float | None  # the radius it was trained for, in the norm asked about
    history: list[dict[str, Any]]
    image_shape: list[int] | None = None


def fits(subject: _Subject, x: Any) -> None:
    """Refuse a model that cannot take these images."""
    expected = subject.image_shape
    if expected is not None and tuple(expected) != x.shape[1:]:
        raise ValueError(
            f"{subject.name} takes images of shape {tuple(expected)}; those of {subject.data} are "
            f"{x.shape[1:]}"
        )
    try:
        jax.eval_shape(per_example(subject.logits_fn), jax.numpy.asarray(x[0]), jax.random.key(0))
    except Exception as error:  # whatever the user's own code raises
        raise ValueError(
            f"{subject.name} cannot take images of shape {x.shape[1:]}, as {subject.data} has: "
            f"{type(error).__name__}: {error}"
        ) from error


def users_model(spec: str) -> LogitsFn:
    """Import `package.module:function`, call it, and put its preprocessing in front.

    Args:
        spec: As on the command line; modules of the current folder are found.

    Raises:
        ValueError: If it cannot be imported, called, or does not return a model.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"--model must be package.module:function; got {spec!r}")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model {spec}: {error}") from error
    try:
        made = function()
    except Exception as error:  # whatever the user's own code raises
        raise ValueError(f"--model {spec} raised {type(error).__name__}: {error}") from error
    logits_fn, preprocessing = made if isinstance(made, tuple) else (made, None)
    if not callable(logits_fn) or not (preprocessing is None or callable(preprocessing)):
        raise ValueError(
            f"--model {spec} must return logits_fn or (logits_fn, preprocessing), both callable; "
            f"got {type(made).__name__}"
        )
    if preprocessing is None:
        return logits_fn
    before = as_partial(preprocessing)
    if isinstance(logits_fn, Randomized):
        return Randomized(jax.tree_util.Partial(_after, logits_fn.fn, before))
    return jax.tree_util.Partial(_after, as_partial(logits_fn), before)


def _after(logits_fn: LogitsFn, preprocessing: Any, x: Any, *key: Any) -> Any:
    return logits_fn(preprocessing(x), *key)
