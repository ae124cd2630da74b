"""`diagnose`: run the probes, compare what they found, and say so in words."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.attacks import transfer
from jaxrobust.diagnosis._findings import Findings
from jaxrobust.diagnosis._probes import (
    height_program,
    look_program,
    probes,
    same_program,
    signs_program,
)
from jaxrobust.diagnosis._symptoms import AT_LEAST, SYMPTOMS
from jaxrobust.evaluation import _findings as doubts
from jaxrobust.evaluation._arguments import check, check_sources
from jaxrobust.evaluation._bench import Bench, spread
from jaxrobust.evaluation._detection import check_detectors, score_program
from jaxrobust.evaluation._judge import attack_program, clean_program, no_derivative
from jaxrobust.evaluation._store import Store
from jaxrobust.threat import Ball, check_ball
from jaxrobust.types import (
    Attack,
    Finding,
    Images,
    Labels,
    LogitsFn,
    Randomized,
    as_partial,
)

VOTES = 10
"""Draws of a random model whose majority is its class."""

SHORT = 0.01
"""A gradient that moves the margin by less than this share of it across the whole box is none.

In a ReLU network without biases the gradient times the image is the margin itself, a share of 1.
"""

RADII = (0.5, 1.0, 2.0)
"""Radii at which success is compared, in units of eps."""


def diagnose(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Any,
    ball: Ball,
    sources: Mapping[str, LogitsFn] | None = None,
    detectors: Mapping[str, Callable[[Any], Any]] | None = None,
    num_steps: int = 20,
    num_queries: int = 300,
    batch_size: int = 128,
    progress: bool = False,
) -> Findings:
    """Tell whether a model withstands attacks, or only hides its gradients from them.

    Looks for the five symptoms of masked gradients (Athalye et al.): one-step attacks beat
    iterative ones, attacks without gradients beat those with them, unbounded attacks fail, random
    search finds more, success falls with the radius or does not grow. And at the gradients
    themselves: missing, vanishing, not finite, random, contradicted by finite differences;
    saturated logits; probabilities in place of logits; a loss that does not rise; another loss, an
    average over draws or another model's gradient that finds more.

    A finding is a measured doubt, and no finding is no proof. Every attack is short: this is no
    evaluation, whose numbers `evaluate` makes. A model that cannot be differentiated, or returns
    NaN, is a finding and no error; one that does not look at its image is told so, and nothing
    else is asked of it.

    What attacks do is told as a share of the images that are right, what gradients are of all.

    Each probe is one compiled program, traced once and run batch by batch over the images; only
    images that are classified rightly are attacked, and attacks without gradients meet those that
    the others left standing. Memory: that of a gradient of one batch; and on the host, all images
    as one attack leaves them, and twice a byte for each of their pixels.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`, or `Randomized`; as a
            `jax.tree_util.Partial` its weights stay out of the compiled programs.
        x: `(n, *dims)` images inside `ball.box`; some hundred are enough.
        y: `(n,)` labels.
        key: Typed key.
        ball: The threat that the model is claimed to withstand.
        sources: Other models of the same classes, by name, whose adversarial images are tried on
            this one.
        detectors: By name, `detector(outputs) -> (batch,)`; negative rejects. A clean image that
            one of them rejects is wrong, an attacked one counts as right in `accuracy`. The attacks
            do not know of detectors, and all symptoms are of predictions alone, but for one: how
            many images stand for no other reason than that they are rejected.
        num_steps: Gradient steps of each attack.
        num_queries: Queries an image of the random search, and of Square (in l1, of PGD with
            estimated gradients).
        batch_size: Rows at once on each device.
        progress: Show progress bars.

    Returns:
        What was found, and everything that was measured.

    Raises:
        ValueError: For arguments that cannot be meant.

    References:
        Athalye et al. 2018, sec. 3 and 4 (paper 001, gradient masking); Carlini et al. 2019 (the
        evaluation checklist), Croce and Hein 2022.

    >>> rounded = lambda x: jnp.stack([x.sum(-1), 4 - x.sum(-1)], -1).round()
    >>> found = diagnose(rounded, np.full((8, 4), 0.6, np.float32), np.zeros(8, int),
    ...                  key=jax.random.key(0), ball=Ball("linf", 0.3), batch_size=8)
    >>> "zero gradients" in found.names
    True
    """
    random = isinstance(logits_fn, Randomized)
    votes = VOTES if random else 1
    check_ball(ball, len(x) if hasattr(x, "shape") else None)
    checks.check_count(num_steps, "num_steps")
    checks.check_count(num_queries, "num_queries")
    attack = probes(int(num_steps), int(num_queries), ball.norm, random)
    attacked = {"probe": attack.one_step}
    num_classes = check(
        logits_fn, x, y, attacked, {}, ball, key, batch_size, votes, names=("x", "y")
    )
    sources = check_sources({} if sources is None else sources, x, key, num_classes)
    logits_fn, devices = as_partial(logits_fn), tuple(jax.local_devices())
    watched = check_detectors({} if detectors is None else detectors, logits_fn, x)
    scores = None
    if watched:
        score = score_program(votes, devices)
        scores = functools.partial(lambda model, x, keys: score((watched, model), x, keys))
    bench = Bench(
        logits_fn, x, y, ball, key, batch_size * len(devices), Store(None, {}), progress, scores
    )
    n = len(y)
    clean = bench.predict(clean_program(votes, devices))

    def rejected(judged: dict[str, Any]) -> Any:
        return np.any([judged[f"score {k}"] < 0 for k in watched], axis=0) if watched else False

    right = (clean["prediction"] == np.asarray(y)) & ~np.asarray(rejected(clean))
    tell = _Tell(right)
    accuracy: dict[str, float] = {}

    def told(found: list[Finding]) -> Findings:
        return Findings(
            ball.norm, float(np.max(np.asarray(ball.eps))), n, float(right.mean()), accuracy,
            tell.measured, tell.thresholds,
            sorted(found, key=lambda one: one.severity, reverse=True),
        )  # fmt: skip

    box, everyone = jnp.asarray(ball.box), np.arange(n)
    same = bench.measure("same", same_program(devices), (logits_fn, box), everyone)["same"]
    tell.say("constant outputs", same, float(same.mean()))
    if tell.found:
        return told(tell.found)
    found = doubts.probabilities(clean["like_probabilities"])
    found += doubts.not_finite(clean["prediction"])
    tell.measure("probabilities", clean["like_probabilities"].mean())
    caught, passed = np.zeros(n, bool), np.zeros(n, bool)

    def broken(
        name: str, one: Attack, rows: np.ndarray, within: Ball = ball, keep: int = 0
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Which images an attack breaks; and how it ends, with the first so many images."""
        bench.ball = within
        judged = bench.attack(name, one, np.flatnonzero(rows), attack_program(votes, devices), keep)
        hit, seen_through = np.zeros(n, bool), np.zeros(n, bool)
        hit[rows] = judged["success"]
        seen_through[rows] = judged["success"] & rejected(judged)
        accuracy[name] = float((right & ~(hit & ~seen_through)).mean())
        if within is ball:
            caught[seen_through], passed[hit & ~seen_through] = True, True
        return hit, judged

    some = np.flatnonzero(right)
    white = np.zeros(n, bool)
    error = no_derivative(logits_fn, x, y, key)
    if error is not None:
        found += doubts.no_gradients(error, n)
    else:
        seen = bench.measure("look", look_program(devices), (logits_fn, box), everyone)
        again = bench.measure("look again", signs_program(devices), logits_fn, everyone)
        found += tell.gradients(seen, again, right)

        iterative, judged = broken("many steps", attack.iterative, right, keep=n)
        found += doubts.failed("many steps", spread(n, some, judged["not_finite"], False))
        if len(some):
            after = bench.measure(  # of the same name, and so with the same draws of a random model
                "look", height_program(devices), logits_fn, some, judged.pop("image")
            )
            risen = spread(n, some, after["height"] > seen["height"][some], False)
            tell.say("loss does not rise", right & ~iterative & ~risen)
        one_step, _ = broken("one step", attack.one_step, right)
        tell.compare("one step beats many", one_step, iterative)
        success = [
            iterative if share == 1 else
            broken(f"many steps, {share:g} eps", attack.iterative, right, _scaled(ball, share))[0]
            for share in RADII
        ]  # fmt: skip
        everywhere = broken("many steps, any change", attack.iterative, right, _everything(ball, x))
        success.append(everywhere[0])
        tell.say("unbounded attack fails", right & ~everywhere[0])
        fall = max(itertools.pairwise(success), key=lambda pair: pair[0].sum() - pair[1].sum())
        tell.compare("larger radius, less success", *fall)
        still = right & ~success[0] & ~everywhere[0]
        share = still.sum() / max((right & ~success[0]).sum(), 1)
        counts = still.sum() > SYMPTOMS["unbounded attack fails"].threshold * len(some)
        tell.say("larger radius, no more success", still, share * counts)

        other, _ = broken("many steps, margin", attack.other, right)
        if random:
            frozen, _ = broken("many steps, margin, one draw", attack.frozen, right)
            tell.compare("averaging finds more", other, frozen)
        else:
            tell.say("another loss finds more", other & ~iterative)
        white = iterative | one_step | other
    standing = right & ~white
    tell.say("random search finds more", broken("random search", attack.random, standing)[0])
    tell.say("black box finds more", broken("black box", attack.black_box, standing)[0])
    for name, source in sources.items():
        hit, _ = broken(f"transfer: {name}", transfer(source, attack.iterative), standing)
        tell.say(f"transfer finds more: {name}", hit)
    if watched:
        tell.say("rejected, not withstood", caught & ~passed)

    return told(found + doubts.too_few(len(some), AT_LEAST) + tell.found)


class _Tell:
    """Collects what is measured, and words what is above its threshold."""

    def __init__(self, right: np.ndarray) -> None:
        self.num_right = int(right.sum())
        self.measured, self.thresholds, self.found = {}, {}, []

    def measure(self, name: str, value: float) -> tuple[float, float]:
        """Note a value, and the threshold that it is judged by; returns both."""
        symptom = SYMPTOMS[name.partition(":")[0]]
        threshold = symptom.threshold
        if symptom.compares:
            threshold = max(threshold, (AT_LEAST - 0.5) / max(self.num_right, 1))
        self.measured[name], self.thresholds[name] = float(value), threshold
        return float(value), threshold

    def say(self, name: str, rows: np.ndarray, value: float | None = None) -> None:
        """A share of the images that are right, or a value that rests on some.

        Of what attacks do nothing is said where no image was right, and so none attacked.
        """
        symptom = SYMPTOMS[name.partition(":")[0]]
        if symptom.compares and not self.num_right:
            return
        value, threshold = self.measure(name, self._share(rows) if value is None else value)
        if value > threshold:
            self.found.append(
                Finding(
                    name, value, threshold, doubts.first(rows), symptom.meaning, symptom.cure,
                    symptom.severity,
                )
            )  # fmt: skip

    def compare(self, name: str, weaker: np.ndarray, stronger: np.ndarray) -> None:
        """By how much the attack that should do less does more."""
        self.say(name, weaker & ~stronger, self._share(weaker) - self._share(stronger))

    def gradients(
        self, seen: dict[str, np.ndarray], again: dict[str, np.ndarray], right: np.ndarray
    ) -> list[Finding]:
        """What the model shows at the clean images, of two looks with keys of their own."""
        zero, broken = seen["zero"], seen["not_finite"]
        _, limit = self.measure("zero gradients", zero.mean())
        self.measure("gradients not finite", broken.mean())
        found = doubts.zero_gradients(zero, limit) + doubts.broken_gradients(broken)
        tiny = float(jnp.finfo(seen["margin"].dtype).tiny)
        self.say("saturated logits", right & (np.abs(seen["margin"]) > -math.log(tiny)))
        self.say("vanishing gradients", right & (seen["slope"] < SHORT))
        limit, apart = SYMPTOMS["shattered gradients"].threshold, seen["mismatch"]
        finite = np.isfinite(apart)
        if finite.any():  # where none is, "gradients not finite" says so
            self.say("shattered gradients", apart > limit, float(np.median(apart[finite])))
        either = (seen["signs"] != 0) | (again["signs"] != 0)
        differ = ((seen["signs"] != again["signs"]) & either).sum(1) / np.maximum(either.sum(1), 1)
        self.say("stochastic gradients", differ > 0, float(differ.mean()))
        return found

    def _share(self, rows: np.ndarray) -> float:
        return float(rows.sum() / max(self.num_right, 1))


def _scaled(ball: Ball, share: float) -> Ball:
    """A ball of another radius; in linf not beyond the box."""
    eps = share * np.asarray(ball.eps)
    if ball.norm == "linf":
        eps = np.minimum(eps, ball.box.high - ball.box.low)
    return dataclasses.replace(ball, eps=eps)


def _everything(ball: Ball, x: Any) -> Ball:
    """A ball that holds the whole box."""
    width, dims = ball.box.high - ball.box.low, math.prod(x.shape[1:])
    eps = {"linf": width, "l2": width * math.sqrt(dims), "l1": width * dims}[ball.norm]
    return dataclasses.replace(ball, eps=eps)
