"""Every measurement of the experiment; see `experiments.records`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
        return train.trained(self.data, name, self.preset, self.out)

    @functools.cached_property
    def test(self) -> Any:
        """The test set."""
        return jr.data.load(self.data, "test")


def record(place: Place, only: tuple[str, ...] = ()) -> None:
    """Make every measurement whose networks are trained, the cheap ones first."""
    measurements: dict[str, Callable[[Place, str], Any]] = {f"clean {n}": clean for n in NETWORKS}
    for measure, label in (
        (curves, "curves"), (climb, "climb"), (within, "within"), (white_box, "white-box"),
        (black_box, "black-box"),
    ):  # fmt: skip
        measurements |= {f"{label} {name}": measure for name in DEFENCES}
    for attack in gray_box_attacks(place):
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
            "weights": {each: digest(network) for each, network in found.items()},
        }  # fmt: skip
        command = f"python -m experiments.pdm --stage evaluate --data {place.data}"
        path = place.folder / f"{title.replace(' ', '-')}.json"
        make = functools.partial(measure, place, name)
        records.keep(path, about, make, f"{command} --preset {place.preset}")


def outputs_of(network: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits and embeddings of many images."""
    run = jax.jit(lambda network, x: network(x))
    parts = [run(network, jnp.asarray(part)) for part in np.array_split(x, -(-len(x) // 500))]
    logits, embedding = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(embedding)


@functools.cache
def detectors(place: Place, name: str) -> dict[str, Any]:
    """The detectors of a network.

    "density" is the paper's, with a threshold that rejects 5 % of held-out images and a bandwidth
    that suits them best; "median" the same with the published thresholds of the white-box attack;
    "mahalanobis" for comparison. None has seen an adversarial image.
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
    clean = outputs_of(network, held.x)
    bandwidth = detect.choose_bandwidth(z, y, clean[1], held.y, num_classes=CLASSES)
    density = detect.kernel_density(z, y, num_classes=CLASSES, bandwidth=bandwidth)
    simple = detect.mahalanobis(z, y, num_classes=CLASSES)
    return {
        "density": detect.calibrated(density, clean, rate=config.FALSE_POSITIVES),
        "median": detect.median_thresholds(density, z, y),
        "mahalanobis": detect.calibrated(simple, clean, rate=config.FALSE_POSITIVES),
    }


def clean(place: Place, name: str) -> dict[str, Any]:
    """Table 1, and how the embeddings of test images lie (sections 2, 3 and 3.5)."""
    network, test = place.network(name), place.test
    logits, z = outputs_of(network, test.x)
    few = place.sizes.clusters
    norms = np.asarray(detect.jacobian_norm(network, test.x[:few], key=jax.random.key(place.seed)))
    margin = detect.embedding_margin(z[:few], test.y[:few], num_classes=CLASSES)
    return {
        "accuracy": float(np.mean(logits.argmax(1) == test.y)),
        "davies_bouldin": float(davies_bouldin_score(z, test.y)),
        "variance": detect.cluster_variance(z, test.y, num_classes=CLASSES),
        "distance": detect.cluster_distance(z, test.y, num_classes=CLASSES),
        "margin": margin,
        "jacobian": float(norms.mean()),
        "penetration": float(np.median(detect.penetration_bound(margin, norms))),
    }


def gray_box_attacks(place: Place) -> dict[str, tuple[Callable[..., Any], int]]:
    """Table 2's attacks on the classifier alone, all untargeted, and the number of their images.

    BIM takes ten steps of a tenth of its radius, as in RCE's code, and JSMA up to 100 single
    features.
    """
    sizes, size = place.sizes, int(np.prod(place.test.x.shape[1:]))
    steps, searches = sizes.confident
    plain = functools.partial(attacks.carlini_wagner_l2, num_steps=10, num_searches=9, initial_c=1)
    sure = functools.partial(
        attacks.carlini_wagner_l2, num_steps=steps, num_searches=searches, kappa=10.0
    )
    saliency = functools.partial(attacks.jsma, on="softmax", pairs=False, gamma=100.5 / size)
    found: dict[str, Any] = {}
    for eps in (0.05, 0.1):
        found[f"FGSM-{eps:g}"] = (functools.partial(_ball, attacks.fgsm, eps), sizes.cheap)
        found[f"BIM-{eps:g}"] = (functools.partial(_ball, _bim, eps), sizes.cheap)
    return found | {
        "C&W": (plain, sizes.cheap), "C&W-hc": (sure, sizes.dear), "JSMA": (saliency, sizes.cheap),
    }  # fmt: skip


def _ball(attack: Any, eps: float, network: Any, x: Any, y: Any, *, key: Any) -> Any:
    return attack(network, x, y, key=key, ball=jr.Ball("linf", eps))


def _bim(network: Any, x: Any, y: Any, *, key: Any, ball: Any) -> Any:
    return attacks.pgd(
        network, x, y, key=key, ball=ball, num_steps=10, step_size=ball.eps / 10, random_start=False
    )


def gray_box(place: Place, name: str, attack: str) -> dict[str, Any]:
    """One entry of Table 2: the areas under the curve; see `scored`."""
    search, num = gray_box_attacks(place)[attack]
    x_adv = _batched(place, search, place.network(name), num)
    return scored(place, name, x_adv)


def scored(place: Place, name: str, x_adv: np.ndarray) -> dict[str, Any]:
    """What the detectors of a network make of adversarial twins of the first test images.

    "auc" compares pairs of a clean image that is classified correctly and its successful twin, as
    in RCE's protocol; "auc, all" every clean image with its twin, whatever became of them.
    "accuracy" is of the classifier alone, "joint" counts what is right or rejected too.
    """
    network = place.network(name)
    x, y = place.test.x[: len(x_adv)], place.test.y[: len(x_adv)]
    before, after = outputs_of(network, x), outputs_of(network, x_adv)
    right = before[0].argmax(1) == y
    wrong = after[0].argmax(1) != y
    pairs = right & wrong
    moved = (x_adv - x).reshape(len(x), -1)
    found: dict[str, Any] = {
        "num": len(x), "clean": float(right.mean()), "pairs": int(pairs.sum()),
        "accuracy": float(1 - wrong.mean()), "success": float(pairs.sum() / max(1, right.sum())),
    }  # fmt: skip
    if pairs.any():
        classes = (y[pairs], after[0].argmax(1)[pairs])
        found["confusion"] = confusion_matrix(*classes, labels=range(CLASSES)).tolist()
        found["l2"] = float(np.linalg.norm(moved[pairs], axis=1).mean())
        found["distortion"] = float(np.sqrt((moved[pairs] ** 2).mean(1)).mean())
    for kind, detector in detectors(place, name).items():
        natural, scores = np.asarray(detector(before)), np.asarray(detector(after))
        undetected = pairs & (scores >= 0)
        found[kind] = {
            "auc": detect.auc(natural[pairs], scores[pairs]) if pairs.any() else None,
            "auc, all": detect.auc(natural, scores),
            "undetected": float(undetected.sum() / max(1, right.sum())),
            "false positives": float(np.mean(natural < 0)),
            "joint": float(np.mean(~wrong | (scores < 0))),
        }
    return found


def curves(place: Place, name: str) -> dict[str, Any]:
    """Figure 3: accuracy of the classifier alone under FGSM and BIM."""
    network, y = place.network(name), place.test.y[: place.sizes.cheap]
    found: dict[str, Any] = {"eps": RADII}
    for label, attack in (("FGSM", attacks.fgsm), ("BIM", _bim)):
        found[label] = []
        for eps in RADII:
            search = functools.partial(_ball, attack, eps)
            x_adv = _batched(place, search, network, place.sizes.cheap)
            found[label].append(float(np.mean(outputs_of(network, x_adv)[0].argmax(1) == y)))
    return found


def climb(place: Place, name: str) -> dict[str, Any]:
    """Section 4.2: how steep the network is where BIM of eps 0.1 goes, step by step.

    The mean norm of the loss's gradient in the parameters of each layer, and the embedding's
    Jacobian. The paper does not say which gradient it means.
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
        for layer, norm in _layer_norms(network, x_k, jnp.asarray(y)).items():
            found["layers"].setdefault(layer, []).append(float(np.mean(norm)))
    return found


@jax.jit
def _layer_norms(network: Any, x: Any, y: Any) -> dict[str, Any]:
    def one(x: Any, y: Any) -> dict[str, Any]:
        slopes = jax.grad(lambda network: losses.cross_entropy(_row(network, x), y))(network)
        found: dict[str, Any] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
            layer, kind = (str(getattr(key, "key", key)) for key in path[-2:])
            if kind == "kernel":
                found[layer] = jnp.linalg.norm(leaf)
        return found

    return jax.lax.map(lambda row: one(*row), (x, y))


def _row(network: Any, x: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], network(x[None]))


def white_box(place: Place, name: str) -> dict[str, Any]:
    """Table 3: how far C&W-wb must go to be misclassified and denser than the class's median."""
    steps, searches = place.sizes.white_box
    return scored(place, name, _carlini_wagner_wb(place, name, steps, searches))


def _carlini_wagner_wb(place: Place, name: str, steps: int, searches: int) -> np.ndarray:
    watched = detect.exposed(place.network(name), detectors(place, name)["median"])
    attack = functools.partial(
        attacks.carlini_wagner_l2, loss=losses.penalized(losses.f6, detect.hinge()),
        num_steps=steps, num_searches=searches, initial_c=1.0,
    )  # fmt: skip
    return _batched(place, attack, watched, place.sizes.dear)


def within(place: Place, name: str) -> dict[str, Any]:
    """The last column of Table 2: PGD that knows the detector, within one l2 budget for all."""
    watched = detect.exposed(place.network(name), detectors(place, name)["median"])
    ball = jr.Ball("l2", config.BUDGET[place.data])

    def attack(network: Any, x: Any, y: Any, *, key: Any) -> Any:
        return attacks.pgd(
            network, x, y, key=key, ball=ball, num_steps=place.sizes.adaptive, num_restarts=3,
            loss=losses.penalized(losses.f6, detect.hinge()),
        )  # fmt: skip

    found = scored(place, name, _batched(place, attack, watched, place.sizes.dear))
    return found | {"budget": config.BUDGET[place.data]}


def black_box(place: Place, name: str) -> dict[str, Any]:
    """Table 4: C&W-wb on the proxy and its own density, shown to the defence."""
    steps, searches = place.sizes.white_box
    return scored(place, name, _carlini_wagner_wb(place, f"proxy {name}", steps, searches))


def _batched(place: Place, attack: Callable[..., Any], network: Any, num: int) -> np.ndarray:
    """An attack on the first test images, so many at once; row i draws from a key of its own."""
    x, y = place.test.x[:num], place.test.y[:num]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(place.seed), jnp.arange(num))
    size = min(BATCH, num)
    parts = [
        np.asarray(attack(network, x[at], y[at], key=keys[at]))
        for at in (slice(start, start + size) for start in range(0, num, size))
    ]
    return np.concatenate(parts)


def positions(place: Place, name: str) -> dict[str, np.ndarray]:
    """Figures 1 and 2: test embeddings in the plane, by t-SNE, and their classes."""
    from sklearn.manifold import TSNE

    num = place.sizes.clusters
    _, z = outputs_of(place.network(name), place.test.x[:num])
    plane = TSNE(perplexity=min(30, num // 4), random_state=place.seed).fit_transform(z)
    return {"plane": plane.astype(np.float32), "y": place.test.y[:num].astype(np.int8)}
