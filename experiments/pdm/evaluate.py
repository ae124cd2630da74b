"""Every measurement of the experiment; see `experiments.records`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import bootstrap
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix, davies_bouldin_score

import jaxrobust as jr
from experiments import records
from experiments.pdm import config, train
from experiments.pdm.config import DEFENCES, HELD_OUT, NETWORKS, POINTS, RADII, Preset
from jaxrobust import attacks, detect, losses
from jaxrobust.identity import digest

BATCH = 100
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Place:
    """Where networks are found and numbers are kept, and what this run is of."""

    out: Path
    results: Path
    preset: str
    data: config.Data
    seed: int

    @property
    def folder(self) -> Path:
        """Of this preset's numbers."""
        return self.results / self.preset / self.data

    @property
    def sizes(self) -> Preset:
        """How much is measured."""
        return config.PRESETS[self.preset]

    def network(self, name: str) -> Any:
        """A trained network, which returns logits and embedding; see `train.trained`."""
        kept = None if self.preset == "paper" else self.folder  # a copy of what is small
        return train.trained(self.data, name, self.preset, self.out, kept)

    @functools.cached_property
    def test(self) -> Any:
        """The test set."""
        return jr.data.load(self.data, "test")


def record(place: Place, only: tuple[str, ...] = ()) -> None:
    """Make every measurement whose networks are trained, the cheap ones first."""
    measurements: dict[str, Callable[[Place, str], Any]] = {f"clean {n}": clean for n in NETWORKS}
    for measure, label in (
        (curves, "curves"),
        (climb, "climb"),
        (white_box, "white-box"),
        (within, "within"),
        (black_box, "black-box"),
        (functools.partial(black_box, kappa=config.SURE), "black-box sure"),
    ):
        measurements |= {f"{label} {name}": measure for name in DEFENCES}
    for attack in config.GRAY_BOX:
        measure = functools.partial(gray_box, attack=attack)
        measurements |= {f"{attack} {name}": measure for name in DEFENCES}
    for title, measure in measurements.items():
        if only and not any(part in title for part in only):
            continue
        name = next(n for n in sorted(NETWORKS, key=len, reverse=True) if title.endswith(f" {n}"))
        needed = [name, f"proxy {name}"] if title.startswith("black-box") else [name]
        found = {each: place.network(each) for each in needed}
        if missing := [each for each, network in found.items() if network is None]:
            print(f"{title}: {', '.join(missing)} not trained", flush=True)
            continue
        about = {
            "name": title, "data": place.data, "seed": place.seed, "sizes": place.sizes,
            "protocol": config.PROTOCOL,
            "weights": {each: digest(network) for each, network in found.items()},
        }  # fmt: skip
        if title.startswith(("white-box", "within", "black-box")):
            about["white_box"] = config.WHITE_BOX
        command = f"python -m experiments.pdm --stage evaluate --data {place.data}"
        path = place.folder / f"{title.replace(' ', '-')}.json"
        make = functools.partial(measure, place, name)
        records.keep(path, about, make, f"{command} --preset {place.preset}")


def outputs_of(network: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits and embeddings of many images."""
    parts = [_called(network, jnp.asarray(part)) for part in np.array_split(x, -(-len(x) // 500))]
    logits, embedding = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(embedding)


@jax.jit
def _called(network: Any, x: Any) -> Any:
    return network(x)


@functools.cache
def detectors(place: Place, name: str) -> dict[str, Any]:
    """The detectors of a network.

    "density" is the paper's, with a threshold that rejects 5 % of held-out images and the bandwidth
    that suits others best; "median" the same with thresholds such as the published white-box attack
    has; "mahalanobis" for comparison. None has seen an adversarial image.
    """
    network = place.network(name)
    train_set = jr.data.load(place.data, f"train[:-{HELD_OUT}]")
    held = jr.data.load(place.data, f"train[-{HELD_OUT}:]")
    points = min(POINTS, 20 * place.sizes.clusters)
    rng = np.random.default_rng(place.seed)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(train_set.y == c))[:points] for c in range(CLASSES)]
    )
    y = np.asarray(train_set.y)[rows]
    _, z = outputs_of(network, train_set.x[rows])
    half = HELD_OUT // 2
    logits, choosing = outputs_of(network, held.x[:half])
    right = logits.argmax(1) == held.y[:half]  # what lies with another class would rule the choice
    bandwidth = detect.choose_bandwidth(
        z, y, choosing[right], held.y[:half][right], num_classes=CLASSES
    )
    density = detect.kernel_density(z, y, num_classes=CLASSES, bandwidth=bandwidth)
    clean = outputs_of(network, held.x[half:])
    right = clean[0].argmax(1) == held.y[half:]
    clean = (clean[0][right], clean[1][right])
    simple = detect.mahalanobis(z, y, num_classes=CLASSES)
    return {
        "density": detect.calibrated(density, clean, rate=config.FALSE_POSITIVES),
        "median": detect.median_thresholds(density, clean[1], held.y[half:][right]),
        "mahalanobis": detect.calibrated(simple, clean, rate=config.FALSE_POSITIVES),
    }


def clean(place: Place, name: str) -> dict[str, Any]:
    """Table 1, and how the embeddings of test images lie (sections 2, 3 and 3.5)."""
    network, test = place.network(name), place.test
    logits, z = outputs_of(network, test.x)
    right = logits.argmax(1) == test.y
    few = np.flatnonzero(right)[: place.sizes.clusters]  # a wrong one lies with another class
    norms = np.asarray(detect.jacobian_norm(network, test.x[few], key=jax.random.key(place.seed)))
    margin = detect.embedding_margin(z[few], test.y[few], num_classes=CLASSES)
    known = detectors(place, name)
    ranked = np.sort(logits[right], axis=1)
    gap = ranked[:, -1] - ranked[:, -2]
    return {
        "accuracy": float(right.mean()),
        "logit margin": {"median": float(np.median(gap)), "largest": float(gap.max())},
        "davies_bouldin": float(davies_bouldin_score(z, test.y)),
        "variance": detect.cluster_variance(z, test.y, num_classes=CLASSES),
        "distance": detect.cluster_distance(z, test.y, num_classes=CLASSES),
        "margin": margin,
        "jacobian": float(norms.mean()),
        "penetration": float(np.median(detect.penetration_bound(margin, norms))),
        "bandwidth": float(known["density"].bandwidth),
        "rejected": {
            kind: float(np.mean(np.asarray(detector((logits, z)))[right] < 0))
            for kind, detector in known.items()
        },
    }


def gray_box(place: Place, name: str, attack: str) -> dict[str, Any]:
    """One entry of Table 2: the areas under the curve; see `scored`."""
    function, settings = config.GRAY_BOX[attack]
    settings, sizes = dict(settings), place.sizes
    if "eps" in settings:
        settings["ball"] = jr.Ball("linf", settings.pop("eps"))
    if attack == "C&W-hc":
        settings["num_steps"], settings["num_searches"] = sizes.confident
    if function == "jsma":
        settings["gamma"] = 100.5 / np.prod(place.test.x.shape[1:])
    search = functools.partial(getattr(attacks, function), **settings)
    num = sizes.dear if attack == "C&W-hc" else sizes.cheap
    return scored(place, name, _batched(place, search, place.network(name), num))


def scored(place: Place, name: str, x_adv: np.ndarray) -> dict[str, Any]:
    """What the detectors of a network make of adversarial twins of the first test images.

    "auc" compares pairs of a clean image that is classified correctly and its successful twin, as
    in RCE's protocol, with a bootstrap's 95 % interval; "auc, all" every clean image with its twin,
    whatever became of them. Shares are of the images that are classified correctly without attack.
    """
    network = place.network(name)
    x, y = place.test.x[: len(x_adv)], place.test.y[: len(x_adv)]
    before, after = outputs_of(network, x), outputs_of(network, x_adv)
    right = before[0].argmax(1) == y
    pairs = right & (after[0].argmax(1) != y)
    size = (x_adv - x).reshape(len(x), -1)
    rms = np.sqrt((size**2).mean(1))
    median = float(np.median(np.where(pairs, rms, np.inf)[right]))
    found: dict[str, Any] = {
        "num": len(x), "right": int(right.sum()), "pairs": int(pairs.sum()),
        "median distortion": median if np.isfinite(median) else None,
    }  # fmt: skip
    if pairs.any():
        classes = (y[pairs], after[0].argmax(1)[pairs])
        found["confusion"] = confusion_matrix(*classes, labels=range(CLASSES)).tolist()
        found["l2"] = float(np.linalg.norm(size[pairs], axis=1).mean())
        found["distortion"] = float(rms[pairs].mean())
    for kind, detector in detectors(place, name).items():
        natural, scores = np.asarray(detector(before)), np.asarray(detector(after))
        found[kind] = {
            "auc": detect.auc(natural[pairs], scores[pairs]) if pairs.any() else None,
            "interval": _interval(natural[pairs], scores[pairs], place.seed),
            "auc, all": detect.auc(natural, scores),
            "accepted": int((pairs & (scores >= 0)).sum()),
        }
    return found


def _interval(natural: np.ndarray, scores: np.ndarray, seed: int) -> tuple[float, float] | None:
    """Of the area under the curve, over draws of pairs."""
    if len(natural) < 2:
        return None
    drawn = bootstrap(
        (natural, scores), detect.auc, paired=True, vectorized=False, n_resamples=500,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def curves(place: Place, name: str) -> dict[str, Any]:
    """Figure 3: accuracy of the classifier alone under FGSM and BIM."""
    network, y = place.network(name), place.test.y[: place.sizes.cheap]
    found: dict[str, Any] = {"eps": RADII}
    for label, attack in (("FGSM", attacks.fgsm), ("BIM", attacks.bim)):
        found[label] = []
        for eps in RADII:
            search = functools.partial(attack, ball=jr.Ball("linf", eps))
            x_adv = _batched(place, search, network, place.sizes.cheap)
            found[label].append(float(np.mean(outputs_of(network, x_adv)[0].argmax(1) == y)))
    return found


def climb(place: Place, name: str) -> dict[str, Any]:
    """Section 4.2: how steep the network is where BIM of eps 0.1 goes, step by step.

    Mean norms of the embedding's Jacobian, of the loss's gradient in the embedding and in the
    weights of each layer. The paper speaks of "embedding layer gradients" and says no more.
    """
    network = place.network(name)
    num = min(BATCH, place.sizes.cheap)
    x, y = place.test.x[:num], place.test.y[:num]
    key = jax.random.key(place.seed)
    found: dict[str, Any] = {"jacobian": [], "layers": {}}
    x_k = jnp.asarray(x)
    for step in range(11):
        if step:  # ten steps of a tenth of the radius: never outside
            x_k = attacks.fgsm(network, x_k, y, key=key, ball=jr.Ball("linf", 0.01))
        norms = detect.jacobian_norm(network, x_k, key=key)
        found["jacobian"].append(float(np.mean(norms)))
        for layer, norm in _layer_norms(network, x_k, jnp.asarray(y), key).items():
            found["layers"].setdefault(layer, []).append(float(np.mean(norm)))
    return found


def _layer_norms(network: Any, x: Any, y: Any, key: Any) -> dict[str, Any]:
    """Norms of the loss's gradient in each layer's kernel, and in the embedding."""
    kernels = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(network)
        if jax.tree_util.keystr(path).endswith("['kernel']")
    }
    norms = detect.gradient_norms(network, x, y, key=key)
    layers = {path: path.split("'")[-4] for path in kernels}
    (head,) = (kernel for path, kernel in kernels.items() if layers[path] == "Dense_0")
    slopes = jax.vmap(jax.grad(losses.cross_entropy))(outputs_of(network, x)[0], y)
    return {layer: norms[path] for path, layer in layers.items()} | {
        "embedding": jnp.linalg.norm(slopes @ head.T, axis=1)
    }


def white_box(place: Place, name: str) -> dict[str, Any]:
    """Table 3: how far C&W-wb must go to be misclassified and denser than the class's median."""
    return scored(place, name, _carlini_wagner_wb(place, name, 0.0))


@functools.cache
def _carlini_wagner_wb(place: Place, name: str, kappa: float) -> np.ndarray:
    steps, searches = place.sizes.white_box
    watched = detect.exposed(place.network(name), detectors(place, name)["median"])
    attack = functools.partial(
        attacks.carlini_wagner_l2, loss=losses.penalized(losses.f6, detect.hinge()),
        num_steps=steps, num_searches=searches, kappa=kappa, **config.WHITE_BOX,
    )  # fmt: skip
    return _batched(place, attack, watched, place.sizes.dear)


def within(place: Place, name: str) -> dict[str, Any]:
    """Attacks that know the detector, within one l2 budget for all defences: the worst of them.

    Of the images that several attacks find, each row keeps the densest that is misclassified: no
    threshold, and no area under the curve, has a worse one among them. They are APGD for that very
    aim, towards any class and towards each; PGD on the sum of both losses; PGD that knows of no
    detector; and the images of C&W-wb that lie within the budget.
    """
    network, known, budget = place.network(name), detectors(place, name), config.BUDGET[place.data]
    num, steps, ball = place.sizes.dear, place.sizes.adaptive, jr.Ball("l2", budget)
    watched = {kind: detect.exposed(network, known[kind]) for kind in ("density", "median")}
    densest = losses.selective(losses.margin, detect.hinge(math.inf))
    apgd = functools.partial(attacks.apgd, ball=ball, num_steps=steps)
    pgd = functools.partial(attacks.pgd, ball=ball, num_steps=steps, num_restarts=3)
    towards = functools.partial(apgd, loss=losses.targeted(densest))
    both = losses.penalized(losses.f6, detect.hinge())
    found = {
        "PGD": _batched(place, functools.partial(pgd, loss=losses.margin), network, num),
        "PGD, sum": _batched(place, functools.partial(pgd, loss=both), watched["median"], num),
        "APGD": _batched(
            place, functools.partial(apgd, loss=densest, num_restarts=3), watched["density"], num
        ),
    } | {
        f"APGD, y + {shift}": _batched(place, towards, watched["density"], num, shift)
        for shift in range(1, CLASSES)
    }  # fmt: skip
    x, y = place.test.x[:num], place.test.y[:num]
    far = _carlini_wagner_wb(place, name, 0.0)
    near = np.linalg.norm((far - x).reshape(num, -1), axis=1) <= budget
    found["C&W-wb"] = np.where(near[:, None, None, None], far, x)
    best, score, winner = x.copy(), np.full(num, -np.inf), np.full(num, "none", dtype=object)
    for label, x_adv in found.items():
        outputs = outputs_of(network, x_adv)
        now = np.where(outputs[0].argmax(1) != y, np.asarray(known["density"](outputs)), -np.inf)
        better = now > score
        best[better], score[better], winner[better] = x_adv[better], now[better], label
    won = {label: int((winner == label).sum()) for label in (*found, "none")}
    return scored(place, name, best) | {"budget": budget, "won": won}


def black_box(place: Place, name: str, kappa: float = 0.0) -> dict[str, Any]:
    """Table 4: C&W-wb on the proxy and its own density, shown to the defence."""
    return scored(place, name, _carlini_wagner_wb(place, f"proxy {name}", kappa))


def _batched(
    place: Place, attack: Callable[..., Any], network: Any, num: int, shift: int = 0
) -> np.ndarray:
    """An attack on the first test images, so many at once; row i draws from a key of its own.

    A targeted one goes for the class so many after the true one.
    """
    x, y = place.test.x[:num], (place.test.y[:num] + shift) % CLASSES
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(place.seed), jnp.arange(num))
    size = min(BATCH, num)
    parts = [
        np.asarray(attack(network, x[at], y[at], key=keys[at]))
        for at in (slice(start, start + size) for start in range(0, num, size))
    ]
    return np.concatenate(parts)


def keep_positions(place: Place) -> None:
    """Figures 1 and 2: test embeddings in the plane, by t-SNE, and their classes."""
    for name in NETWORKS:
        network = place.network(name)
        if network is None:
            continue
        path, weights = place.folder / f"t-sne-{name.replace(' ', '-')}.npz", digest(network)
        if path.exists():
            with np.load(path) as kept:
                if str(kept["weights"]) == weights:
                    continue
        num = place.sizes.clusters
        _, z = outputs_of(network, place.test.x[:num])
        plane = TSNE(perplexity=min(30, num // 4), random_state=place.seed).fit_transform(z)
        about = {"y": place.test.y[:num].astype(np.int8), "weights": np.array(weights)}
        jr.files.write_arrays(path, {"plane": plane.astype(np.float32)} | about)
