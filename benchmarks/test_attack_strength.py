"""The attacks people measure with against their best PyTorch peers: strength and time, in turn."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks
from art.attacks.evasion import CarliniL0Method, CarliniLInfMethod, SaliencyMapMethod
from art.estimators.classification import PyTorchClassifier
from jax.tree_util import Partial
from torch import nn

import jaxrobust as jr
from benchmarks import _clock
from benchmarks._rivals import (
    from_torch,
    logits_gap,
    madry_network,
    to_torch,
    torch_madry_cnn,
    use_fastest_threads,
)
from benchmarks.test_parity import digits_mlp
from jaxrobust.identity import digest

EPS = 0.3
EPS_L2 = 1.0
STEPS = 100
QUERIES = 5000
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
SEED = 0


class Victim(NamedTuple):
    """A network in both libraries."""

    logits_fn: Partial
    module: nn.Module


class Pair(NamedTuple):
    """An attack of ours and its peer, in equal steps, on one network.

    Attributes:
        network: "natural" or "adversarial".
        ours: In the common form.
        theirs: `(module, images, labels, eps, seed) -> adversarial images`, NCHW.
        norm: Of the distance that is compared.
        within: Most by which our robust accuracy (attacks within a ball) or mean distance, as a
            share of theirs, may exceed the peer's; accuracies are alike where they differ by no
            more either way.
        faster: Least number of times that we are to be faster.
        eps: Radius that an image must stay within to count; None for minimum-norm attacks.
        targeted: Whether success is the class after the right one, not any wrong one.
        seeds: Runs of each, from draws of their own: two runs of one and the same attack differ by
            some images in a hundred.
        num_images: Images at most.
    """

    network: str
    ours: Callable[..., Any]
    theirs: Callable[[nn.Module, torch.Tensor, torch.Tensor, float, int], torch.Tensor]
    norm: str
    within: float
    faster: float = 1.0
    eps: float | None = None
    targeted: bool = False
    seeds: int = 1
    num_images: int = 500


def of_torchattacks(name: str, norm: str = "Linf", **settings: Any) -> Callable[..., torch.Tensor]:
    """An attack of torchattacks. It seeds PyTorch itself, by its argument."""

    def run(
        module: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, seed: int
    ) -> torch.Tensor:
        make = getattr(torchattacks, name)
        return make(module, norm=norm, eps=eps, seed=seed, **settings)(images, labels)

    return run


def of_foolbox(name: str, **settings: Any) -> Callable[..., torch.Tensor]:
    """A minimum-norm attack of Foolbox; the clean image where it fails.

    Its Carlini-Wagner attack marks failures by black images, which a network may well get wrong.
    """

    def run(
        module: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, seed: int
    ) -> torch.Tensor:
        torch.manual_seed(seed)
        model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
        criterion = foolbox.criteria.Misclassification(labels)
        found = getattr(foolbox.attacks, name)(**settings).run(model, images, criterion)
        failed = found.flatten(1).amax(1) == 0
        return torch.where(failed[:, None, None, None], images, found)

    return run


def autoattack_of_torchattacks(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, seed: int
) -> torch.Tensor:
    """AutoAttack standard at the published settings, each attack on what the last one left.

    torchattacks' own `AutoAttack` runs ten steps.
    """
    members = [
        of_torchattacks("APGD", steps=STEPS, loss="ce"),
        of_torchattacks("APGDT", steps=STEPS),
        of_torchattacks("FAB", steps=STEPS, multi_targeted=True),
        of_torchattacks("Square", n_queries=QUERIES, resc_schedule=False),
    ]
    found = images.clone()
    for member in members:
        with torch.no_grad():
            standing = module(found).argmax(1) == labels
        if standing.any():
            attacked = member(module, images[standing], labels[standing], eps, seed)
            # As the reference does: an image counts only within the ball.
            within = (attacked - images[standing]).abs().flatten(1).amax(1) <= eps + 1e-6
            found[standing] = torch.where(within[:, None, None, None], attacked, images[standing])
    return found


def art_classifier(module: nn.Module, images: torch.Tensor) -> PyTorchClassifier:
    """A network as the toolbox wants it."""
    return PyTorchClassifier(
        module, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip


def carlini_wagner_of_art(attack: Any, **settings: Any) -> Callable[..., torch.Tensor]:
    """One of the toolbox's, image by image; the clean image where it fails. It draws nothing."""

    def run(
        module: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, seed: int
    ) -> torch.Tensor:
        made = attack(art_classifier(module, images), verbose=False, **settings)
        return torch.from_numpy(made.generate(images.numpy(), labels.numpy()))

    return run


def jsma_of_art(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, seed: int
) -> torch.Tensor:
    """JSMA of the toolbox, towards the next class; it draws nothing.

    It ranks features by the derivative of the target's output alone, which is the published ranking
    where outputs are probabilities.
    """
    classifier = art_classifier(nn.Sequential(module, nn.Softmax(1)), images)
    attack = SaliencyMapMethod(classifier, theta=1.0, gamma=1.0, batch_size=64, verbose=False)
    target = np.eye(10, dtype=np.float32)[(labels.numpy() + 1) % 10]
    return torch.from_numpy(attack.generate(images.numpy(), target))


def jsma(logits_fn: Any, x: Any, y: Any, *, key: Any, ball: Any) -> Any:
    """Our JSMA, towards the next class."""
    target = (jnp.asarray(y) + 1) % 10
    return jr.attacks.jsma(logits_fn, x, y, key=key, box=ball.box, target=target, on="softmax")


a, against = jr.attacks, jr.attacks.against
cw = {"num_steps": 200, "num_searches": 5}
PAIRS: dict[str, Pair] = {
    "APGD-CE": Pair(
        "adversarial", functools.partial(a.apgd, num_steps=STEPS),
        of_torchattacks("APGD", steps=STEPS, loss="ce"), "linf", 0.01, eps=EPS, seeds=5,
    ),
    "APGD-T": Pair(
        "adversarial", functools.partial(a.apgd_targeted, num_steps=STEPS),
        of_torchattacks("APGDT", steps=STEPS), "linf", 0.01, eps=EPS, seeds=5,
    ),
    "FAB-T": Pair(
        "adversarial", against(functools.partial(a.fab_targeted, num_steps=STEPS)),
        of_torchattacks("FAB", steps=STEPS, multi_targeted=True), "linf", 0.01, eps=EPS,
    ),
    "FAB": Pair(
        "adversarial", against(functools.partial(a.fab, num_steps=STEPS)),
        of_torchattacks("FAB", steps=STEPS, multi_targeted=False), "linf", 0.01, eps=EPS,
    ),
    "Square": Pair(
        "adversarial", functools.partial(a.square, num_queries=QUERIES),
        of_torchattacks("Square", n_queries=QUERIES), "linf", 0.01, eps=EPS, seeds=3,
    ),
    "AutoAttack standard": Pair(
        "adversarial", a.autoattack, autoattack_of_torchattacks, "linf", 0.004, 1.3, eps=EPS
    ),
    "APGD-CE l2": Pair(
        "natural", functools.partial(a.apgd, num_steps=STEPS),
        of_torchattacks("APGD", "L2", steps=STEPS, loss="ce"), "l2", 0.01, eps=EPS_L2,
    ),
    "Square l2": Pair(
        "natural", functools.partial(a.square, num_queries=QUERIES),
        of_torchattacks("Square", "L2", n_queries=QUERIES), "l2", 0.01, eps=EPS_L2,
    ),
    "Carlini-Wagner l2": Pair(
        "natural", against(functools.partial(a.carlini_wagner_l2, **cw)),
        of_foolbox("L2CarliniWagnerAttack", steps=200, binary_search_steps=5), "l2", 0.03,
    ),
    "Carlini-Wagner linf": Pair(
        "natural", against(functools.partial(a.carlini_wagner_linf, num_steps=100, initial_c=1e-2)),
        carlini_wagner_of_art(CarliniLInfMethod, max_iter=100, initial_const=1e-2), "linf", 0.03,
        num_images=10,
    ),
    "Carlini-Wagner l0": Pair(
        "natural", against(functools.partial(a.carlini_wagner_l0, num_steps=20)),
        carlini_wagner_of_art(CarliniL0Method, max_iter=20, binary_search_steps=5), "l0", 0.03,
        num_images=5,
    ),
    "DeepFool l2": Pair(
        "natural", against(a.deepfool), of_foolbox("L2DeepFoolAttack"), "l2", 0.03
    ),
    "DeepFool linf": Pair(
        "natural", against(a.deepfool), of_foolbox("LinfDeepFoolAttack"), "linf", 0.03
    ),
    "FMN l2": Pair(
        "natural", against(functools.partial(a.fmn, num_steps=STEPS)),
        of_foolbox("L2FMNAttack", steps=STEPS), "l2", 0.03,
    ),
    "FMN linf": Pair(
        "natural", against(functools.partial(a.fmn, num_steps=STEPS)),
        of_foolbox("LInfFMNAttack", steps=STEPS), "linf", 0.03,
    ),
    "FMN l1": Pair(
        "natural", against(functools.partial(a.fmn, num_steps=STEPS)),
        of_foolbox("L1FMNAttack", steps=STEPS), "l1", 0.03,
    ),
    "JSMA": Pair("natural", jsma, jsma_of_art, "l0", 0.05, targeted=True),
    "Boundary": Pair(
        "natural", against(functools.partial(a.boundary, num_steps=1000)),
        of_foolbox("BoundaryAttack", steps=1000), "l2", 0.03, num_images=50,
    ),
}  # fmt: skip
"""By name. Budgets are equal, not always the published ones."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where the networks lie and how much is attacked.

    Attributes:
        checkpoints: Folder with the runs of `experiments.madry_mnist`.
        num_images: Images at most; the first of the test set's second half.
        chunk: Images at once, and between two turns.
        only: Parts of names of pairs; all if empty.
    """

    checkpoints: Path
    num_images: int = 500
    chunk: int = 50
    only: tuple[str, ...] = ()

    def victim(self, which: str) -> Victim:
        """A network in both libraries."""
        params, logits_fn = madry_network(self.checkpoints, which, SEED)
        return Victim(logits_fn, torch_madry_cnn(params))


def measure(setting: Setting, folder: Path) -> Mapping[str, list[dict[str, Any]]]:
    """Run the chosen pairs, and tabulate them with those that are kept from earlier runs.

    Args:
        setting: What is run.
        folder: Each pair's row is kept here as soon as it is there, with its commit.
    """
    test = jr.data.load("mnist", "test[5000:]")
    for name, pair in PAIRS.items():
        if setting.only and not any(part in name for part in setting.only):
            continue
        victim = setting.victim(pair.network)
        use_fastest_threads(victim.module, to_torch(test.x[: setting.chunk]))
        row = race(pair, victim, test.x, test.y, setting)
        made = _clock.provenance(SEED, {})
        suffix = " (changed)" if made["uncommitted_changes"] else ""
        row = {
            "attack": name, **row, "weights": digest(victim.logits_fn),
            "commit": made["commit"][:10] + suffix,
        }  # fmt: skip
        print(row, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        jr.files.write_json(_path(folder, name), row)
    now = {of: digest(setting.victim(of).logits_fn) for of in {p.network for p in PAIRS.values()}}
    kept = {n: jr.files.read_json(_path(folder, n)) for n in PAIRS if _path(folder, n).exists()}
    kept = {n: row for n, row in kept.items() if row["weights"] == now[PAIRS[n].network]}
    titles = {
        f"within linf {EPS}, adversarially trained network": EPS,
        f"within l2 {EPS_L2}, natural network": EPS_L2,
        "minimum norm, natural network": None,
    }
    titles = {title: [n for n in kept if PAIRS[n].eps == eps] for title, eps in titles.items()}
    return {title: [kept[n] for n in names] for title, names in titles.items() if names}


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name.lower().replace(' ', '-')}.json"


def race(
    pair: Pair, victim: Victim, x: np.ndarray, y: np.ndarray, setting: Setting
) -> dict[str, Any]:
    """Both libraries in turn, chunk by chunk and seed by seed, and whether we meet the pair's aims.

    Ours compiles before the clock runs, on the chunks' one length, which takes `first_s`; PyTorch
    has run the network before. Images beyond a whole number of chunks are left out.
    """
    num = min(pair.num_images, setting.num_images, len(x))
    num -= num % min(setting.chunk, num)
    x, y, chunk = x[:num], y[:num], min(setting.chunk, num)
    logits_gap(victim.logits_fn, victim.module, x[:chunk])
    ball = jr.Ball("linf" if pair.norm == "l0" else pair.norm, pair.eps or 1.0)  # pyright: ignore

    def ours(at: np.ndarray, seed: int) -> np.ndarray:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(at))
        return np.asarray(pair.ours(victim.logits_fn, x[at], y[at], key=keys, ball=ball))

    def theirs(at: np.ndarray, seed: int) -> np.ndarray:
        labels = torch.from_numpy(y[at].astype(np.int64))
        own = 1000 * seed + int(at[0])  # other draws for each chunk
        return from_torch(pair.theirs(victim.module, to_torch(x[at]), labels, ball.eps, own))

    chunks = np.split(np.arange(num), num // chunk)
    seconds, found = {"jaxrobust": 0.0, "peer": 0.0}, []
    began = time.perf_counter()
    ours(chunks[0], SEED)
    first = time.perf_counter() - began
    for seed in range(SEED, SEED + pair.seeds):
        images: dict[str, list[np.ndarray]] = {"jaxrobust": [], "peer": []}
        for at in chunks:
            for name, run in (("jaxrobust", ours), ("peer", theirs)):
                began = time.perf_counter()
                images[name].append(run(at, seed))
                seconds[name] += time.perf_counter() - began
        whole = {name: np.concatenate(parts) for name, parts in images.items()}
        found.append(compared(pair, victim, x, y, whole))
    quality = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    times = seconds["peer"] / seconds["jaxrobust"]
    row = {"images": num, "seeds": pair.seeds, **quality}
    if pair.eps is None:
        excess = row["mean_distance"] / row["peer_mean_distance"] - 1
        good = excess <= pair.within and row["success"] >= row["peer_success"] - pair.within
    else:
        for prefix in ("", "peer_"):
            each = [one[f"{prefix}robust_accuracy"] for one in found]
            row[f"{prefix}spread"] = max(each) - min(each)
        behind = row["robust_accuracy"] - row["peer_robust_accuracy"]
        good, row["alike"] = behind <= pair.within, abs(behind) <= pair.within
    return row | {
        "meets": good, "first_s": first, "seconds": seconds["jaxrobust"],
        "peer_seconds": seconds["peer"], "times_faster": times, "fast_enough": times >= pair.faster,
    }  # fmt: skip


def compared(
    pair: Pair, victim: Victim, x: np.ndarray, y: np.ndarray, found: dict[str, np.ndarray]
) -> dict[str, float]:
    """Robust accuracy within eps; or of minimum-norm attacks success, and distances.

    Images that are wrong from the start are broken at no distance, and left out. Distances are
    those of the images that both break, or the one that gives up on hard images would look better.
    """
    right = np.argmax(victim.logits_fn(x), -1) == y
    broken, distance = {}, {}
    for name, x_adv in found.items():
        predicted = np.argmax(victim.logits_fn(jnp.asarray(x_adv)), -1)
        delta = (np.asarray(x_adv, np.float64) - x).reshape(len(x), -1)
        if pair.norm == "l0":
            distance[name] = (np.abs(delta) > 1e-6).sum(1).astype(float)
        else:
            distance[name] = np.linalg.norm(delta, ORDERS[pair.norm], axis=1)
        reached = predicted == (y + 1) % 10 if pair.targeted else predicted != y
        broken[name] = reached & (distance[name] <= (pair.eps or np.inf) + 1e-5)
    columns: dict[str, float] = {}
    both = right & np.logical_and.reduce(list(broken.values()))
    for name, prefix in (("jaxrobust", ""), ("peer", "peer_")):
        if pair.eps is not None:
            columns[f"{prefix}robust_accuracy"] = float(np.mean(right & ~broken[name]))
            continue
        columns[f"{prefix}success"] = float(np.mean(broken[name][right]))
        columns[f"{prefix}mean_distance"] = float(distance[name][both].mean())
        columns[f"{prefix}median_distance"] = float(np.median(distance[name][both]))
    return columns


SMALL = ("APGD-CE", "APGD-T", "FAB-T", "Square", "AutoAttack standard", "Carlini-Wagner l2",
          "DeepFool l2", "DeepFool linf", "FMN l2", "FMN l1", "JSMA", "FAB", "APGD-CE l2",
         "Square l2", "Carlini-Wagner linf", "Carlini-Wagner l0")  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_no_weaker_than_the_peer(name: str) -> None:
    """On a small network, by the aims of the pair: but one image of forty may go either way."""
    setting, num = digits_mlp(), 40
    victim = Victim(setting.logits_fn, setting.module)
    pair = PAIRS[name]
    if pair.eps is not None:
        eps = {"linf": 0.1, "l2": 0.5}[pair.norm]
        pair = pair._replace(eps=eps, seeds=min(pair.seeds, 2), within=1.01 / num)
    row = race(pair, victim, setting.x, setting.y, Setting(Path(), num, num))
    assert row["meets"], row
    if pair.eps is not None:
        assert 0.1 < row["peer_robust_accuracy"] < 0.9
