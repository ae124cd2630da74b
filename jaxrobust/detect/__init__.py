"""Detection of adversarial images by how natural their embeddings are for the class predicted.

A detector is any callable `detector(outputs) -> (batch,)` on a batch of `(logits, embedding)`, what
a model that exposes its embedding returns; negative says "rejected as adversarial", larger is more
natural. Those made here are pytrees, so that reference points stay out of compiled programs.
`evaluate(..., detectors={name: detector})` judges them, and `exposed` with `hinge` turns any attack
with a loss into one that knows the detector.
"""

from jaxrobust.detect._adaptive import exposed, hinge
from jaxrobust.detect._common import ClassConditional
from jaxrobust.detect._kernel import KernelDensity, choose_bandwidth, kernel_density
from jaxrobust.detect._mahalanobis import Mahalanobis, mahalanobis
from jaxrobust.detect._measures import (
    cluster_distance,
    cluster_variance,
    embedding_margin,
    gradient_norms,
    jacobian_norm,
    penetration_bound,
)
from jaxrobust.detect._roc import Roc, auc, roc
from jaxrobust.detect._thresholds import calibrated, median_thresholds

__all__ = [
    "ClassConditional",
    "KernelDensity",
    "Mahalanobis",
    "Roc",
    "auc",
    "calibrated",
    "choose_bandwidth",
    "cluster_distance",
    "cluster_variance",
    "embedding_margin",
    "exposed",
    "gradient_norms",
    "hinge",
    "jacobian_norm",
    "kernel_density",
    "mahalanobis",
    "median_thresholds",
    "penetration_bound",
    "roc",
]
