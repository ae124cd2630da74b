"""What experiments keep."""

from pathlib import Path

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


def test_no_recorded_image_is_both_broken_and_proved():
    """Of the trained networks of `experiments/spatial`, image by image under one budget."""
    folder = Path(records.__file__).parent / "spatial" / "results" / "cpu" / "test"
    found = {name: content["found"] for name, content in records.read(folder).items()}
    names = [name.partition(" ")[2] for name in found if name.startswith("upper ")]
    assert len(names) == 9
    for name in names:
        broken = found[f"within {name}"]["broken"]
        assert any("1" in marks for marks in broken)
        for bound, proved in found[f"upper {name}"]["proved of attacked"].items():
            for attacked, certified in zip(broken, proved, strict=True):
                assert ("1", "1") not in zip(attacked, certified, strict=True), (name, bound)
