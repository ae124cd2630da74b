"""Networks in Flax linen; `jax.tree_util.Partial(model.apply, variables)` is a `logits_fn`."""

from jaxrobust.models._carlini_wagner import CarliniWagnerCNN, carlini_wagner_cnn
from jaxrobust.models._denoising import FeatureDenoising
from jaxrobust.models._ode import OdeNet, odenet, residual_cnn, tisode
from jaxrobust.models._preact_resnet import PreActResNet, preact_resnet18
from jaxrobust.models._resnet import ResNet, resnet, wide_resnet
from jaxrobust.models._sequential import (
    MLP,
    ConvSmall,
    MadryCNN,
    SmallCNN,
    conv_small,
    madry_cnn,
    mlp,
    small_cnn,
)
from jaxrobust.models._spatial_transformer import SpatialTransformer, spatial_transformer

__all__ = [
    "MLP",
    "CarliniWagnerCNN",
    "ConvSmall",
    "FeatureDenoising",
    "MadryCNN",
    "OdeNet",
    "PreActResNet",
    "ResNet",
    "SmallCNN",
    "SpatialTransformer",
    "carlini_wagner_cnn",
    "conv_small",
    "madry_cnn",
    "mlp",
    "odenet",
    "preact_resnet18",
    "residual_cnn",
    "resnet",
    "small_cnn",
    "spatial_transformer",
    "tisode",
    "wide_resnet",
]
