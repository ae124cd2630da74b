"""Models made of models, `logits_fn` in, `logits_fn` out; and random changes of images."""

from jaxrobust.transforms._images import crop_and_flip, resize_and_pad, sometimes_noisy
from jaxrobust.transforms._models import (
    beside,
    ensemble,
    gaussian_noise,
    normalized,
    randomized,
    rescaled_logits,
    reversed_logits,
    reversed_outputs,
)

__all__ = [
    "beside",
    "crop_and_flip",
    "ensemble",
    "gaussian_noise",
    "normalized",
    "randomized",
    "rescaled_logits",
    "resize_and_pad",
    "reversed_logits",
    "reversed_outputs",
    "sometimes_noisy",
]
