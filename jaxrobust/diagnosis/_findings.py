"""What a diagnosis found."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrobust.diagnosis._symptoms import SYMPTOMS
from jaxrobust.types import Finding


@dataclasses.dataclass(frozen=True)
class Findings:
    """The outcome of `diagnose`.

    Attributes:
        norm: Norm of the ball.
        eps: Its radius (the largest, where each row has its own).
        num_examples: Images looked at.
        clean_accuracy: Share that is right without any attack.
        accuracy: Share that is still right under each of the probing attacks, by its name; where
            an attack ran only on what others left standing, its own successes alone are taken off.
        measured: What each probe measured, by the name of its finding, flagged or not.
        thresholds: By the same names, the largest value that raises no doubt; of what attacks do
            never less than three images.
        found: What is flagged, warnings first.

    >>> Findings("linf", 0.1, 8, 1.0, {}, {"zero gradients": 0.0}, {"zero gradients": 0.01}, [])
    Findings(linf 0.1, 8 examples: none)
    """

    norm: str
    eps: float
    num_examples: int
    clean_accuracy: float
    accuracy: dict[str, float]
    measured: dict[str, float]
    thresholds: dict[str, float]
    found: list[Finding]

    @property
    def warnings(self) -> list[Finding]:
        """The findings before whose cure no number should be believed."""
        return [finding for finding in self.found if finding.severity == "warning"]

    @property
    def names(self) -> list[str]:
        """Names of all findings."""
        return [finding.name for finding in self.found]

    def rows(self) -> list[tuple[str, str, float | None, float, str]]:
        """For a table: name, what was measured, its value, the threshold, and the verdict.

        What was not asked of this model, or of no image, has None for a value.
        """
        flagged = {finding.name: finding for finding in self.found}
        shown = []
        for kind, symptom in SYMPTOMS.items():
            names = [name for name in self.measured if name.partition(":")[0] == kind]
            for name in names:
                verdict = flagged[name].severity if name in flagged else "in order"
                value, threshold = self.measured[name], self.thresholds[name]
                shown.append((name, symptom.what, value, threshold, verdict))
            if not names:
                shown.append((kind, symptom.what, None, symptom.threshold, "not asked"))
        return shown

    def shares(self) -> list[tuple[str, float]]:
        """What is right without and under each of the attacks, the weakest first."""
        attacks = sorted(self.accuracy.items(), key=lambda one: (-one[1], one[0]))
        return [("no attack", self.clean_accuracy), *attacks]

    def __repr__(self) -> str:
        """The findings by name; everything else is a matter of the attributes."""
        found = [f"{one.name} ({one.severity}, {one.value:.3g})" for one in self.found]
        return (
            f"Findings({self.norm} {self.eps:g}, {self.num_examples} examples: "
            f"{', '.join(found) or 'none'})"
        )

    def summary(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return dataclasses.asdict(self) | {"found": [one._asdict() for one in self.found]}

    @classmethod
    def restored(cls, summary: dict[str, Any]) -> Findings:
        """The findings whose `summary` this is."""
        fields = dict(summary)
        fields["found"] = [Finding(**one) for one in summary["found"]]
        return cls(**fields)
