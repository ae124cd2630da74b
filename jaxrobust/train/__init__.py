"""Training: a Python loop over one compiled step, with checkpoints that resume exactly."""

from jaxrobust.train._files import restore
from jaxrobust.train._fit import Fit, fit
from jaxrobust.train._state import Best, TrainState, Weights

__all__ = ["Best", "Fit", "TrainState", "Weights", "fit", "restore"]
