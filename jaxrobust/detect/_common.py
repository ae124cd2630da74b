"""What every detector by class shares: its form, and what it refuses."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import checks
from jaxrobust.types import embedding_of, predicted_class


class ClassConditional(abc.ABC):
    """A detector by a score for each class, less that class's threshold.

    Subclasses are registered dataclasses with a field `thresholds` of shape `(classes,)` and a
    method `raw`.
    """

    thresholds: Any

    @abc.abstractmethod
    def raw(self, embedding: Float[Array, "batch dims"]) -> Float[Array, "batch classes"]:
        """Score of each class, larger where more natural, before thresholds."""

    def scores(self, outputs: Any) -> Float[Array, "batch classes"]:
        """How natural each row is for each class, less the thresholds.

        Args:
            outputs: `(logits, embedding)` of shapes `(batch, classes)` and `(batch, dims)`.

        Raises:
            ValueError: For outputs without an embedding, or of other sizes than those fitted.
        """
        logits, embedding = logits_and_embedding(outputs)
        if logits.shape[-1] != len(self.thresholds):
            raise ValueError(
                f"outputs must hold logits of the detector's {len(self.thresholds)} classes; got "
                f"{logits.shape[-1]}"
            )
        return self.raw(embedding) - jnp.asarray(self.thresholds, embedding.dtype)

    def __call__(self, outputs: Any) -> Float[Array, " batch"]:
        """Score of the predicted class: negative where rejected; -inf where there is no number."""
        return of_predicted(self.scores(outputs), jnp.asarray(outputs[0]))


def of_predicted(scores: Array, logits: Array) -> Array:
    """Score of the predicted class; -inf where that or the class is no number."""
    predicted = predicted_class(logits)
    own = jnp.take_along_axis(scores, jnp.maximum(predicted, 0)[:, None], 1)[:, 0]
    return jnp.where((predicted < 0) | jnp.isnan(own), -jnp.inf, own)


def logits_and_embedding(outputs: Any) -> tuple[Any, Any]:
    """The two; the embedding flattened, and at least in float32."""
    embedding = embedding_of(outputs)
    logits = outputs[0]
    if jnp.ndim(logits) != 2:
        raise ValueError(
            f"outputs must hold logits of shape (batch, classes); got {jnp.shape(logits)}"
        )
    return logits, embedding.astype(jnp.promote_types(embedding.dtype, jnp.float32))


def check_dims(embedding: Any, dims: int, name: str = "embedding") -> None:
    """Refuse embeddings of another size than the reference points."""
    if embedding.shape[-1] != dims:
        raise ValueError(
            f"{name} must have the {dims} dims of the reference points; got {embedding.shape[-1]}"
        )


def check_embeddings(
    embeddings: Any, labels: Any, num_classes: int, prefix: str = "", *, every: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Refuse embeddings that are not finite, and (`every`) a class without any."""
    name = f"{prefix}embeddings"
    checks.check_count(num_classes, "num_classes", 2)
    if isinstance(embeddings, tuple):
        raise ValueError(
            f"{name} must be an array of shape (points, dims); got a tuple of {len(embeddings)}: "
            "of a model's outputs (logits, embedding), hand over the second"
        )
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    if embeddings.ndim != 2 or not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floats of shape (points, dims); got {embeddings.dtype} of shape "
            f"{embeddings.shape}"
        )
    checks.check_labels(labels, len(embeddings), num_classes, f"{prefix}labels")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if bad.size:
        raise ValueError(
            f"{name} must be finite; {bad.size} rows hold NaN or infinite values, the first is "
            f"{bad[0]}"
        )
    absent = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if every and absent.size:
        raise ValueError(
            f"{prefix}labels must give every one of the {num_classes} classes a point; class "
            f"{absent[0]} has none"
        )
    return embeddings.astype(np.promote_types(embeddings.dtype, np.float32)), labels


def check_distinct(embeddings: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Refuse a class whose points are one point: it has no density to speak of."""
    for c in range(num_classes):
        own = embeddings[labels == c]
        if (own == own[0]).all():
            what = "has one point" if len(own) == 1 else f"has {len(own)} identical points"
            raise ValueError(
                f"embeddings must hold two different points of every class at least; class {c} "
                f"{what}"
            )


def check_validation(outputs: Any) -> tuple[Any, Any]:
    """The logits and embeddings of clean validation images; refuse what is not finite."""
    logits, embedding = logits_and_embedding(outputs)
    if len(logits) == 0:
        raise ValueError("outputs must hold at least one image; got none")
    good = jnp.all(jnp.isfinite(embedding), 1) & (predicted_class(jnp.asarray(logits)) >= 0)
    if not (whole := jax.device_get(good)).all():
        raise ValueError(
            f"outputs must be finite; {int((~whole).sum())} rows hold NaN, the first is "
            f"{int(np.flatnonzero(~whole)[0])}"
        )
    return logits, embedding
