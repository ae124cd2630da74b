"""Networks in Flax linen; `jax.tree_util.Partial(model.apply, variables)` is a `logits_fn`."""

from jaxrobust.models._carlini_wagner import CarliniWagnerCNN, carlini_wagner_cnn
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
    "MadryCNN",
    "PreActResNet",
    "ResNet",
    "SmallCNN",
    "SpatialTransformer",
    "carlini_wagner_cnn",
    "conv_small",
    "madry_cnn",
    "mlp",
    "preact_resnet18",
    "resnet",
    "small_cnn",
    "spatial_transformer",
    "wide_resnet",
]
