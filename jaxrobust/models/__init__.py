"""Networks in Flax linen; `jax.tree_util.Partial(model.apply, variables)` is a `logits_fn`."""

from jaxrobust.models._carlini_wagner import CarliniWagnerCNN, carlini_wagner_cnn
from jaxrobust.models._sequential import MLP, MadryCNN, SmallCNN, madry_cnn, mlp, small_cnn
from jaxrobust.models._spatial_transformer import SpatialTransformer, spatial_transformer
from jaxrobust.models._wide_resnet import WideResNet, wide_resnet

__all__ = [
    "MLP",
    "CarliniWagnerCNN",
    "MadryCNN",
    "SmallCNN",
    "SpatialTransformer",
    "WideResNet",
    "carlini_wagner_cnn",
    "madry_cnn",
    "mlp",
    "small_cnn",
    "spatial_transformer",
    "wide_resnet",
]
