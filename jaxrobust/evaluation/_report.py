"""What an evaluation found: numbers, their intervals, and one row an example."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import files
from jaxrobust.detect import Roc, roc
from jaxrobust.types import Finding


def reach(eps: Any) -> Any:
    """A radius with slack for the rounding of float32 images and distances.

    1e-5 of it, and 1e-6 of a pixel's range: 1/4000 of a grey level.
    """
    return eps * (1 + 1e-5) + 1e-6


@dataclasses.dataclass(frozen=True)
class AttackRecord:
    """What one attack cost and returned.

    Attributes:
        seconds: Wall time, compilation included.
        rows: Examples it was run on.
        successes: Examples it broke, of those that were still right before it.
        gradients: Gradient estimates an example at most; None where a loop is unbounded.
        forwards: Model evaluations an example at most, those inside gradients included.
        outside: Rows it returned outside the ball or the box.
        median: Median distance, "l0" (pixels), "l2" and "linf", of the images as returned that are
            classified wrongly, of those right before any attack; empty where there are none. One
            attack's medians compare with another's only where both broke the same images.
    """

    seconds: float
    rows: int
    successes: int
    gradients: int | None
    forwards: int | None
    outside: int
    median: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CertificateRecord:
    """What one certificate claims.

    Attributes:
        seconds: Wall time.
        method: Name of the bound.
        proof: Why it holds.
        norm: Norm it speaks of.
        eps: Radius it speaks of.
        alpha: Probability with which it may fail on one example; None where it is deterministic.
        n: Samples an example that a probabilistic one rests on.
        sigma: Standard deviation of the noise of a probabilistic one.
    """

    seconds: float
    method: str
    proof: str
    norm: str
    eps: float
    alpha: float | None = None
    n: int | None = None
    sigma: float | None = None

    @property
    def probabilistic(self) -> bool:
        """Whether it holds with high probability only."""
        return self.alpha is not None


@dataclasses.dataclass(frozen=True)
class DetectorRecord:
    """What a detector is worth; every accuracy is a fraction of all examples.

    Attributes:
        false_positive_rate: Share of the clean images that the model gets right that are rejected;
            None, here and below, where there were none.
        clean_accuracy: Right and accepted, without any attack.
        robust_accuracy: Right and accepted without any attack, and right or rejected under each of
            them: the worst case an example.
        detection_rate: Share of an attack's successful images that are rejected, by its name.
        auc: Area under the curve of detection against false positives, by name: of the images that
            the model gets right and the attack breaks, clean against attacked. It says what the
            detector withstands only where the attack wanted a high score (`losses.selective`): one
            that only passes a threshold leaves an area of about one less the rate of rejections.
        accuracy: Right without any attack, and right or rejected under this one, by name.
    """

    false_positive_rate: float | None
    clean_accuracy: float
    robust_accuracy: float
    detection_rate: dict[str, float | None]
    auc: dict[str, float | None]
    accuracy: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of `evaluate`; every accuracy is a fraction of all examples.

    Attributes:
        norm: Norm of the threat.
        eps: Its radius (the largest, where each row has its own).
        num_examples: Examples evaluated.
        num_classes: Classes of the model.
        clean_accuracy: Right without any attack.
        robust_accuracy: Right under every attack that was run: the worst case an example.
        accuracy_after: Right after this attack and all before it, by name, in order.
        accuracy_under: Right under this attack alone, by name; empty where `survivors_only`.
        certified_accuracy: Right and proved to stay so, by name of the certificate; deterministic
            certificates only.
        intervals: 95 % Clopper-Pearson intervals of the accuracies: "clean", "robust",
            "after NAME", "under NAME", "certified NAME", "smoothed NAME"; of a detector
            "joint clean DETECTOR", "joint robust DETECTOR", "joint DETECTOR ATTACK".
        attacks: Cost and conduct of each attack.
        certificates: Claim of each certificate.
        findings: Measured doubts about these numbers.
        settings: Key data (seed), batch size, votes, and the like.
        environment: Versions and device.
        examples: One array a column, one row an example: "label", "clean_prediction",
            "clean_correct", "robust", "broken_by" (name or ""), "distance" (smallest at which
            any attack was seen to succeed, inf where none), and by name "ran/NAME",
            "success/NAME", "prediction/NAME", "distance/NAME" (NaN where not run), "l0/NAME"
            (pixels), "l2/NAME" and "linf/NAME" of images that are wrong as returned (NaN
            elsewhere), "certified/NAME", "margin/NAME" (smallest proved margin); for a
            probabilistic certificate "smoothed/NAME" (certified for the label at eps),
            "radius/NAME", "BOUND_radius/NAME" for every bound, "smoothed_prediction/NAME" (-1 where
            it abstains), "p1_low/NAME" and "p2_high/NAME"; for a detector "score/DETECTOR" of the
            clean image and "score/DETECTOR/ATTACK" (NaN where not run), negative where rejected,
            and "joint/DETECTOR" (see `DetectorRecord.robust_accuracy`).
        images: Of the first rows only (`keep_images`): "clean" and "adversarial".
        smoothed_accuracy: Share whose label is certified with high probability, by name of the
            certificate. It speaks of the smoothed classifier, whose clean mistakes are its own.
        measured: Whether images show how far they are. Where they do not (flows), the attacks'
            budget was not re-checked, and every "distance" of a broken example is NaN.
        detectors: What each detector is worth. All other accuracies are without any detector.
    """

    norm: str
    eps: float
    num_examples: int
    num_classes: int
    clean_accuracy: float
    robust_accuracy: float
    accuracy_after: dict[str, float]
    accuracy_under: dict[str, float]
    certified_accuracy: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    attacks: dict[str, AttackRecord]
    certificates: dict[str, CertificateRecord]
    findings: list[Finding]
    settings: dict[str, Any]
    environment: dict[str, Any]
    examples: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    smoothed_accuracy: dict[str, float] = dataclasses.field(default_factory=dict)
    measured: bool = True
    detectors: dict[str, DetectorRecord] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """The accuracies; everything else is a matter of the attributes."""
        kinds = {
            "after": self.accuracy_after,
            "certified": self.certified_accuracy,
            "smoothed": self.smoothed_accuracy,
        }
        shown = [f"clean {self.clean_accuracy:.4g}"]
        shown += [f"{kind} {k} {v:.4g}" for kind, found in kinds.items() for k, v in found.items()]
        shown += [f"robust {self.robust_accuracy:.4g}"] if self.attacks else []
        shown += [f"with {k} {v.robust_accuracy:.4g}" for k, v in self.detectors.items()]
        return (
            f"Report({self.norm} {self.eps:g}, {self.num_examples} examples: {', '.join(shown)}; "
            f"findings: {', '.join(finding.name for finding in self.findings) or 'none'})"
        )

    def accuracy_at(self, eps: float | np.ndarray) -> np.ndarray:
        """Accuracy against eps from the recorded distances: right, and not broken within eps.

        An upper bound on the true curve, exact for what the attacks found. Minimum-norm attacks
        (`attacks.against`) or attacks pinned at rising radii (`attacks.at_eps`) make it informative
        below `self.eps`; other attacks tell little of other radii than their own.

        Args:
            eps: Radii at which to read the curve, in pixel units.

        Raises:
            ValueError: For a threat whose distances images do not show.
        """
        if not self.measured:
            raise ValueError(
                f"accuracy_at needs measured distances, and images do not show those of "
                f"{self.norm}; evaluate at each radius instead"
            )
        radius = reach(np.asarray(eps, np.float64)[..., None])
        standing = self.examples["clean_correct"] & (self.examples["distance"] > radius)
        return standing.mean(-1)

    def smoothed_at(self, name: str, eps: float | np.ndarray, bound: str = "") -> np.ndarray:
        """Probabilistically certified accuracy against eps, from the recorded radii.

        Args:
            name: The certificate.
            eps: Radii at which to read the curve, in pixel units.
            bound: Another bound from the same samples ("renyi", say) than the one it claims.
        """
        radius = self.examples[f"{bound}_radius/{name}" if bound else f"radius/{name}"]
        right = self.examples[f"smoothed_prediction/{name}"] == self.examples["label"]
        return np.asarray((right & (radius > np.asarray(eps, np.float64)[..., None])).mean(-1))

    def roc(self, detector: str, attack: str) -> Roc | None:
        """A detector's curve for the images that the model gets right and the attack breaks.

        Args:
            detector: The detector.
            attack: The attack.

        Returns:
            Detection against false positives; None where the attack broke nothing.
        """
        fooled = self.examples["clean_correct"] & self.examples[f"success/{attack}"]
        clean, attacked = (self.examples[f"score/{detector}{of}"] for of in ("", f"/{attack}"))
        return roc(clean[fooled], attacked[fooled]) if fooled.any() else None

    def summary(self) -> dict[str, Any]:
        """Everything but the per-example arrays, as JSON can hold it."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("examples", "images")
        }
        fields["attacks"] = {k: dataclasses.asdict(v) for k, v in self.attacks.items()}
        fields["certificates"] = {k: dataclasses.asdict(v) for k, v in self.certificates.items()}
        fields["detectors"] = {k: dataclasses.asdict(v) for k, v in self.detectors.items()}
        fields["findings"] = [finding._asdict() for finding in self.findings]
        return json.loads(json.dumps(fields))

    def arrays(self) -> dict[str, np.ndarray]:
        """The per-example columns and kept images, under the names that `restored` reads."""
        columns = {f"examples/{name}": column for name, column in self.examples.items()}
        return columns | {f"images/{name}": image for name, image in self.images.items()}

    @classmethod
    def restored(cls, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> Report:
        """The report whose `summary` and `arrays` these are."""

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        fields = dict(summary)
        fields["attacks"] = {k: AttackRecord(**v) for k, v in summary["attacks"].items()}
        fields["certificates"] = {
            k: CertificateRecord(**v) for k, v in summary["certificates"].items()
        }
        fields["detectors"] = {
            k: DetectorRecord(**v) for k, v in summary.get("detectors", {}).items()
        }
        fields["findings"] = [Finding(**v) for v in summary["findings"]]
        fields["intervals"] = {k: (v[0], v[1]) for k, v in summary["intervals"].items()}
        return cls(**fields, examples=under("examples/"), images=under("images/"))

    def save(self, folder: str | Path) -> None:
        """Write `report.json` and `examples.npz` into a folder, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.summary(), indent=1) + "\n"
        files.write_arrays(folder / "examples.npz", self.arrays(), compress=True)
        files.write_whole(folder / "report.json", text.encode())
