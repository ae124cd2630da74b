"""Networks in Flax linen; `jax.tree_util.Partial(model.apply, variables)` is a `logits_fn`."""

from jaxrobust.models._carlini_wagner import CarliniWagnerCNN, carlini_wagner_cnn
from jaxrobust.models._denoising import FeatureDenoising
from jaxrobust.models._ode import OdeNet, odenet, residual_cnn, tisode
from jaxrobust.models._resnet import ResNet, resnet, wide_resnet
from jaxrobust.models._sequential import MLP, MadryCNN, SmallCNN, madry_cnn, mlp, small_cnn
from jaxrobust.models._spatial_transformer import SpatialTransformer, spatial_transformer

__all__ = [
    "MLP",
    "CarliniWagnerCNN",
    "FeatureDenoising",
    "MadryCNN",
    "OdeNet",
    "ResNet",
    "SmallCNN",
    "SpatialTransformer",
    "carlini_wagner_cnn",
    "madry_cnn",
    "mlp",
    "odenet",
    "residual_cnn",
    "resnet",
    "small_cnn",
    "spatial_transformer",
    "tisode",
    "wide_resnet",
]
