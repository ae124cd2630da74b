"""The measurements, each kept in a JSON file of its own; see `experiments.records`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

import jaxrobust as jr
from experiments import records
from experiments.gradient_masking import config, train, zoo
from experiments.gradient_masking.config import Sizes
from jaxrobust.diagnosis import SYMPTOMS


@dataclasses.dataclass(frozen=True)
class Place:
    """Where numbers are kept, and what is looked at.

    Attributes:
        results: Recorded numbers and pages.
        preset: Name of the preset.
        data: Name of the data.
    """

    results: Path
    preset: str
    data: config.Data

    @property
    def folder(self) -> Path:
        """Of this preset's numbers, of these data."""
        return self.results / self.preset / self.data

    @property
    def sizes(self) -> Sizes:
        """How much is trained and measured."""
        return config.SIZES[self.preset][self.data]

    @functools.cached_property
    def images(self) -> train.Data:
        """Training and test images."""
        return train.load(self.sizes)


def record(place: Place, only: tuple[str, ...] = ()) -> None:
    """Train, diagnose and attack every network, once a seed."""
    names = [f"{name} {seed}" for name in zoo.MASKED | zoo.CONTROLS for seed in place.sizes.seeds]
    for part in only:
        if not any(part in name for name in names):
            raise ValueError(f"only must be parts of {', '.join(names)}; got {part!r}")
    for name in zoo.MASKED | zoo.CONTROLS:
        for seed in place.sizes.seeds:
            title = f"{name} {seed}"
            if only and not any(part in title for part in only):
                continue
            limits = {name: symptom.threshold for name, symptom in SYMPTOMS.items()}
            about = {
                "name": title, "sizes": place.sizes, "seed": seed, "thresholds": limits,
                "code": code(),
            }  # fmt: skip
            how = f"--data {place.data} --preset {place.preset}"
            command = f"python -m experiments.gradient_masking {how}"
            path = place.folder / f"{title.replace(', ', '-').replace(' ', '-')}.json"
            records.keep(path, about, functools.partial(measure, place, name, seed), command)


@functools.cache
def code() -> str:
    """A checksum of the zoo and of the probes."""
    here, probes = Path(__file__).parent, Path(jr.diagnosis.__file__).parent
    return records.code(
        *(here / f"{name}.py" for name in ("layers", "models", "train", "zoo")),
        *sorted(probes.glob("*.py")),
    )


def measure(place: Place, name: str, seed: int) -> dict[str, Any]:
    """What a network seems to withstand, what its diagnosis is, and what its cure leaves."""
    sizes, data = place.sizes, place.images
    train_key, key = jax.random.split(jax.random.key(seed))
    defence = (zoo.MASKED | zoo.CONTROLS)[name](sizes, data, train_key)
    natural = zoo.CONTROLS["natural"](sizes, data, jax.random.fold_in(train_key, 1)).logits_fn
    found = jr.diagnose(
        defence.logits_fn, data.x_test, data.y_test, key=key, ball=jr.Ball("linf", sizes.eps),
        detectors=defence.detectors, sources={"natural": natural},
        batch_size=min(128, len(data.y_test)),
    )  # fmt: skip
    return {
        "row": defence.row,
        "symptoms": defence.symptoms,
        "cure": defence.cure,
        "findings": found.summary(),
        "seems": zoo.accuracy(defence, defence.plain, sizes, data, key),
        "is": zoo.accuracy(defence, defence.attack, sizes, data, key),
    }


def page(place: Place) -> None:
    """The report of the first seed's diagnoses, masked and honest."""
    found = {
        content["name"].rpartition(" ")[0]: jr.diagnosis.Findings.restored(
            content["found"]["findings"]
        )
        for content in records.read(place.folder).values()
        if content["seed"] == place.sizes.seeds[0]
    }
    if found:
        jr.report.save(found, place.folder / "page")
