"""What experiments keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrobust as jr
from experiments import records
from jaxrobust.identity import digest


def test_a_kept_network_is_the_trained_one(tmp_path):
    model, x, y = jr.models.mlp((3,)), np.eye(4, dtype=np.float32), np.arange(4) % 2
    jr.train.fit(
        jr.objectives.cross_entropy(jr.objectives.from_module(model.apply)),
        model.init(jax.random.key(0), x)["params"], optax.sgd(0.1), (x, y), key=jax.random.key(1),
        num_epochs=2, batch_size=2, directory=tmp_path / "run",
    )  # fmt: skip
    apply, kept = model.apply, tmp_path / "results" / "net.npz"
    assert records.restored(apply, tmp_path / "run", 5, kept) is None  # not trained to its end
    assert not kept.exists()
    trained = records.restored(apply, tmp_path / "run", 4, kept)
    copy = records.restored(apply, tmp_path / "elsewhere", 4, kept)
    assert digest(copy) == digest(trained)
    assert jnp.array_equal(copy(x), trained(x))
    assert records.restored(apply, tmp_path / "elsewhere", 4) is None
