"""Networks in Flax linen; `jax.tree_util.Partial(model.apply, variables)` is a `logits_fn`."""

from jaxrobust.models._sequential import MLP, MadryCNN, SmallCNN, madry_cnn, mlp, small_cnn

__all__ = ["MLP", "MadryCNN", "SmallCNN", "madry_cnn", "mlp", "small_cnn"]
