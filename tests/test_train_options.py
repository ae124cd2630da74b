"""Repeats, augmentation, averages, selection and stopping of `fit`; what it says of a failure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import objectives

KEY = jax.random.key(5)
X = np.random.default_rng(0).uniform(size=(12, 3)).astype(np.float32)
Y = (X.sum(1) > 1.5).astype(np.int32)


def stepper(seen=None):
    """An objective whose one parameter counts the steps, under `optax.sgd(1.0)`."""

    def value_and_grad(params, model_state, state, batch, *, key):
        if seen is not None:
            jax.debug.callback(
                lambda *arrays: seen.append([np.asarray(a) for a in arrays]),
                batch.index, batch.x, ordered=True,
            )  # fmt: skip
        model_state = {"twice": model_state["twice"] + 2, "count": model_state["count"] + 1}
        out = jr.types.Out(jnp.zeros(()), model_state, state, {})
        return out, jax.tree.map(lambda p: -jnp.ones_like(p), params)

    return jr.Objective(lambda params, key: (), value_and_grad)


def fit(objective=None, **changes):
    options = {
        "key": KEY, "num_epochs": 5, "batch_size": 4,
        "model_state": {"twice": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)},
    }  # fmt: skip
    params = {"w": jnp.zeros(2)}
    return jr.train.fit(
        objective or stepper(), params, optax.sgd(1.0), (X, Y), **(options | changes)
    )


def test_repeats_show_each_batch_so_often_in_a_row():
    seen, plain = [], []
    done = fit(stepper(seen), repeats=3, num_epochs=2)
    fit(stepper(plain), num_epochs=2)
    jax.effects_barrier()
    assert done.params["w"][0] == 18
    assert done.metrics[-1]["step"] == 18
    assert done.metrics[-1]["epoch"] == 1
    for t, (index, _) in enumerate(seen):
        np.testing.assert_array_equal(index, plain[t // 3][0])


def test_an_image_is_augmented_alike_in_every_batch_and_repeat_and_anew_in_every_epoch():
    def images(epochs=2, **changes):
        seen = []
        fit(
            stepper(seen), num_epochs=epochs,
            augment=lambda x, key: x + jax.random.normal(key, x.shape), **changes,
        )  # fmt: skip
        jax.effects_barrier()
        per_epoch = len(seen) // epochs
        found = [{} for _ in range(epochs)]
        for t, (index, x) in enumerate(seen):
            for row, image in zip(index, x, strict=True):
                known = found[t // per_epoch].setdefault(int(row), image)
                np.testing.assert_array_equal(known, image)
        return [np.array([epoch[row] for row in range(12)]) for epoch in found]

    one, two = images(batch_size=4), images(batch_size=6, repeats=2)
    np.testing.assert_array_equal(one, two)
    assert not np.any(one[0] == one[1])
    noise = one[0] - X
    assert len(np.unique(noise.round(6))) == noise.size


def test_averages_are_weighted_by_powers_of_the_decay_and_validated():
    validated = []

    def validate(params, model_state):
        validated.append((float(params["w"][0]), float(model_state["twice"])))
        return {}

    done = fit(ema_decay=0.8, validate=validate)
    for epoch in range(5):
        steps = np.arange(1, 3 * epoch + 4)
        expected = np.average(steps, weights=0.8 ** (steps[-1] - steps))
        np.testing.assert_allclose(validated[epoch], (expected, 2 * expected), rtol=1e-5)
    np.testing.assert_allclose(done.ema.params["w"], expected, rtol=1e-5)
    assert done.ema.model_state["count"] == 15
    assert done.params["w"][0] == 15
    assert fit().ema is None


def test_training_stops_when_a_metric_no_longer_rises_and_keeps_the_best(tmp_path):
    peak = lambda params, model_state: {"other": 0.0, "score": -((params["w"][0] - 6) ** 2)}
    options = {"validate": peak, "select": "score", "patience": 2, "num_epochs": 9}
    done = fit(directory=tmp_path / "one", **options)
    assert done.params["w"][0] == 12  # the second epoch was best, and two more followed
    assert done.best.epoch == 1
    assert done.best.value == 0
    assert done.best.weights.params["w"][0] == 6
    assert done.best.weights.model_state["twice"] == 12
    again = fit(directory=tmp_path / "one", resume=True, **options)
    assert again.metrics == done.metrics
    assert again.best.epoch == 1
    for epochs in (1, 3, 9):
        done = fit(directory=tmp_path / "two", resume=True, **options | {"num_epochs": epochs})
    assert done.params["w"][0] == 12
    assert (tmp_path / "one" / "metrics.jsonl").read_text() == (
        tmp_path / "two" / "metrics.jsonl"
    ).read_text()
    restored, state = jr.train.restore(tmp_path / "two", "best")
    np.testing.assert_array_equal(restored["w"], 6)
    assert state["count"] == 6
    np.testing.assert_array_equal(jr.train.restore(tmp_path / "two")[0]["w"], 12)
    with pytest.raises(ValueError, match="fit without ema_decay; got 'ema'"):
        jr.train.restore(tmp_path / "two", "ema")
    with pytest.raises(ValueError, match=r"another model.*\.ema"):
        fit(directory=tmp_path / "two", resume=True, ema_decay=0.5, **options)
    with pytest.raises(ValueError, match="repeats 1; got 2"):
        fit(directory=tmp_path / "two", resume=True, repeats=2, **options)


def test_a_metric_that_is_no_number_never_is_the_best():
    nothing = fit(validate=lambda p, s: {"score": jnp.nan}, select="score", patience=2)
    assert nothing.best.epoch == -1
    assert nothing.params["w"][0] == 6
    assert fit(validate=lambda p, s: {"score": jnp.nan}, select="score").params["w"][0] == 15


def test_averages_are_in_the_checkpoint(tmp_path):
    done = fit(ema_decay=0.5, directory=tmp_path)
    restored, state = jr.train.restore(tmp_path, "ema")
    np.testing.assert_array_equal(restored["w"], done.ema.params["w"])
    np.testing.assert_array_equal(state["twice"], done.ema.model_state["twice"])


def test_free_adversarial_training_learns_in_repeats(tmp_path):
    linear = lambda params, model_state, x: ((x - 0.5) @ params["w"], model_state)
    options = {
        "key": KEY, "batch_size": 4, "repeats": 4, "params": {"w": jnp.zeros((3, 2))},
        "optimizer": optax.sgd(1.0), "data": (X, Y),
    }  # fmt: skip
    objective = objectives.free(linear, ball=jr.Ball("linf", 0.05), shape=(4, 3))
    done = jr.train.fit(objective, num_epochs=10, **options)
    assert done.metrics[-1]["step"] == 120
    assert done.metrics[-1]["loss"] < 0.8 * done.metrics[0]["loss"]
    assert np.abs(done.objective_state.delta).max() == pytest.approx(0.05)
    for epochs in (4, 10):
        again = jr.train.fit(
            objective, num_epochs=epochs, directory=tmp_path, resume=True, **options
        )
    for a, b in zip(jax.tree.leaves(done[:3]), jax.tree.leaves(again[:3]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_failure_names_step_objective_metrics_and_checkpoint(tmp_path):
    linear = lambda params, model_state, x: (x @ params["w"], model_state)
    options = {
        "key": KEY, "batch_size": 4, "params": {"w": jnp.zeros((3, 2))}, "data": (X, Y),
        "num_epochs": 8,
    }  # fmt: skip
    objective = objectives.scheduled(
        lambda eps: objectives.madry(linear, jr.attacks.fgsm, ball=jr.Ball("linf", eps)),
        eps=lambda step: jnp.where(step < 7, 0.25, jnp.nan),
    )
    with pytest.raises(FloatingPointError) as failure:
        jr.train.fit(objective, optimizer=optax.sgd(0.1), directory=tmp_path, **options)
    said = str(failure.value)
    assert " is nan at step 8 of madry, scheduled; the last good checkpoint is " in said
    assert str(tmp_path / "checkpoints" / "6") in said
    assert "adversarial_accuracy" in said.split("metrics of that step: ")[1]
    with pytest.raises(FloatingPointError, match="of cross_entropy; there is no good checkpoint"):
        jr.train.fit(objectives.cross_entropy(linear), optimizer=optax.sgd(jnp.nan), **options)


def test_what_cannot_be_meant_is_refused():
    score = lambda params, model_state: {"score": 1.0}
    for changes, message in (
        ({"repeats": 0}, "repeats must be an integer"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1; got 1.0"),
        ({"select": "score"}, "select needs validate"),
        ({"select": "other", "validate": score}, r"one of what validate returns.*'score'"),
        ({"patience": 2, "validate": score}, "patience needs select"),
        ({"patience": 0, "select": "score", "validate": score}, "patience must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(**changes)
