"""Training: learns, resumes bit for bit after a kill, and says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from quick import CACHE, FLAGS

import jaxrobust as jr
from jaxrobust import objectives

KEY = jax.random.key(5)
SCRIPT = """
import sys, jax, optax, functools, numpy as np
import jaxrobust as jr
from jaxrobust import objectives, train
train._fit.LOG_EVERY = 5
data = jr.data.load("digits", "train")
model = jr.models.mlp((16,))
shape = (64, 8, 8, 1)
params = model.init(jax.random.key(0), data.x[:1])["params"]
forward = objectives.from_module(model.apply)
objective = objectives.add(
    objectives.cross_entropy(forward),
    objectives.scheduled(
        lambda eps: objectives.madry(
            forward, functools.partial(jr.attacks.pgd, num_steps=2), ball=jr.Ball("linf", eps)
        ),
        eps=optax.linear_schedule(0.0, 0.05, 40),
    ),
    objectives.free(forward, ball=jr.Ball("linf", 0.05), shape=shape),
)
fit = train.fit(
    objective, params, optax.adam(optax.cosine_decay_schedule(3e-3, 60)), (data.x, data.y),
    key=jax.random.key(5), num_epochs=2, batch_size=64, directory=sys.argv[1], resume=True,
    checkpoint_seconds=0.0, validate=lambda p, s: {"norm": optax.global_norm(p)}, repeats=2,
    ema_decay=0.9, select="norm", patience=2,
    augment=functools.partial(jr.transforms.crop_and_flip, padding=1),
)
ends = (fit.params, fit.objective_state, fit.ema, fit.best)
leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(ends)]
np.savez(sys.argv[1] + "/final.npz", *leaves)
"""


def small(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(96, 6)).astype(np.float32)
    y = (x.sum(1) > 3).astype(np.int32)
    params = {"w": jnp.zeros((6, 2))}
    return x, y, params, objectives.cross_entropy(lambda p, s, x: ((x - 0.5) @ p["w"], s))


def fit(x, y, params, objective, **changes):
    options = {"key": KEY, "num_epochs": 3, "batch_size": 32} | changes
    return jr.train.fit(objective, params, optax.sgd(0.5), (x, y), **options)


def test_learns_and_reports():
    x, y, params, objective = small()
    validated = []

    def validate(params, model_state):
        validated.append(params)
        return {"size": jnp.sum(params["w"] ** 2)}

    done = fit(x, y, params, objective, num_epochs=40, validate=validate)
    training = [m for m in done.metrics if "loss" in m]
    assert training[-1]["loss"] < 0.5 * training[0]["loss"]
    assert training[-1]["step"] == 120
    assert len(validated) == 40
    assert done.metrics[-1]["validation"]["size"] > 0
    np.testing.assert_array_equal(params["w"], 0)  # the caller's arrays live on


def test_an_epoch_visits_every_row_once():
    x, y, params, _ = small()
    seen = []

    def value_and_grad(params, model_state, state, batch, *, key):
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), batch.index, ordered=True)
        out = jr.types.Out(jnp.zeros(()), model_state, state, {})
        return out, jax.tree.map(jnp.zeros_like, params)

    recorder = jr.Objective(lambda params, key: (), value_and_grad)
    fit(x, y, params, recorder, num_epochs=2)
    jax.effects_barrier()
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    np.testing.assert_array_equal(np.sort(first), np.arange(96))
    np.testing.assert_array_equal(np.sort(second), np.arange(96))
    assert not np.array_equal(first, second)


def start(folder):
    environment = os.environ | CACHE | {"XLA_FLAGS": FLAGS}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], env=environment, stderr=subprocess.PIPE
    )


def test_kill_minus_nine_and_resume_end_in_the_same_bits(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = start(straight)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    kills = 0
    for wanted in (5, 45):
        process = start(killed)
        lines = killed / "metrics.jsonl"
        while process.poll() is None:
            if lines.exists() and f'"step": {wanted},' in lines.read_text():
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.communicate()
    assert kills == 2
    # A kill in the middle of a line leaves half of it.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "epo')
    process = start(killed)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    with np.load(straight / "final.npz") as one, np.load(killed / "final.npz") as two:
        assert one.files == two.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], two[name])
    assert (straight / "metrics.jsonl").read_text() == (killed / "metrics.jsonl").read_text()


def test_resume_refuses_what_does_not_belong(tmp_path):
    x, y, params, objective = small()
    done = fit(x, y, params, objective, directory=tmp_path)
    restored, _ = jr.train.restore(tmp_path)
    np.testing.assert_array_equal(restored["w"], done.params["w"])
    again = fit(x, y, params, objective, directory=tmp_path, resume=True)
    np.testing.assert_array_equal(again.params["w"], done.params["w"])
    assert again.metrics == done.metrics
    with pytest.raises(ValueError, match="already holds a run"):
        fit(x, y, params, objective, directory=tmp_path)
    with pytest.raises(ValueError, match=r"another model.*w"):
        fit(x, y, {"w": jnp.zeros((6, 3))}, objective, directory=tmp_path, resume=True)
    with pytest.raises(ValueError, match="batch_size"):
        fit(x, y, params, objective, directory=tmp_path, resume=True, batch_size=16)
    with pytest.raises(ValueError, match="key"):
        fit(x, y, params, objective, directory=tmp_path, resume=True, key=jax.random.key(6))
    with pytest.raises(ValueError, match="data"):
        fit(1 - x, y, params, objective, directory=tmp_path, resume=True)
    with pytest.raises(ValueError, match="no checkpoints"):
        jr.train.restore(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs the directory"):
        fit(x, y, params, objective, resume=True)


def test_nan_is_reported_with_its_step_and_metric(tmp_path):
    x, y, params, objective = small()

    def value_and_grad(params, model_state, state, batch, *, key):
        out, grads = objective.value_and_grad(params, model_state, (), batch, key=key)
        bad = jnp.where(state == 3, jnp.nan, 0.0)
        return out._replace(state=state + 1, metrics={"margin": out.loss + bad}), grads

    failing = jr.Objective(lambda params, key: jnp.zeros((), jnp.int32), value_and_grad)
    with pytest.raises(FloatingPointError, match="margin is nan at step 4"):
        fit(x, y, params, failing, directory=tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [3]


@pytest.mark.parametrize("what", ["params", "model_state"])
def test_weights_that_are_not_finite_are_never_saved(what, tmp_path):
    x, y, params, objective = small()

    def value_and_grad(params, model_state, state, batch, *, key):
        out, grads = objective.value_and_grad(params, model_state, (), batch, key=key)
        bad = jnp.where(state == 5, jnp.nan, 0.0)  # the last step of the second epoch
        out = out._replace(state=state + 1)
        if what == "params":
            return out, jax.tree.map(lambda g: g + bad, grads)
        return out._replace(model_state={"mean": bad}), grads

    failing = jr.Objective(lambda params, key: jnp.zeros((), jnp.int32), value_and_grad)
    state = {"mean": jnp.zeros(())}
    name = {"params": "'w'", "model_state": "'mean'"}[what]
    with pytest.raises(FloatingPointError, match=rf"{what}.*{name}.*after step 6"):
        fit(x, y, params, failing, directory=tmp_path, model_state=state)
    assert np.isfinite(jr.train.restore(tmp_path)[0]["w"]).all()


def test_a_damaged_checkpoint_costs_an_epoch_and_no_more(tmp_path):
    x, y, params, objective = small()
    done = fit(x, y, params, objective, directory=tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:7])
    assert np.isfinite(jr.train.restore(tmp_path)[0]["w"]).all()
    with pytest.warns(UserWarning, match=rf"cannot be read were moved to .*step {newest.name}: "):
        again = fit(x, y, params, objective, directory=tmp_path, resume=True)
    np.testing.assert_array_equal(again.params["w"], done.params["w"])
    assert (tmp_path / "unreadable-checkpoints" / newest.name).is_dir()
    (tmp_path / "run.json").write_text('{"half')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        fit(x, y, params, objective, directory=tmp_path, resume=True)


def test_what_cannot_be_read_today_is_not_thrown_away(tmp_path, monkeypatch):
    x, y, params, objective = small()
    done = fit(x, y, params, objective, directory=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    def failing(*args, **kwargs):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(orbax.checkpoint.CheckpointManager, "restore", failing)
        with pytest.raises(ValueError, match=r"none can \(step .*Input/output error.*Nothing was"):
            fit(x, y, params, objective, directory=tmp_path, resume=True)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = fit(x, y, params, objective, directory=tmp_path, resume=True)
    np.testing.assert_array_equal(again.params["w"], done.params["w"])


def test_another_training_method_is_no_resumption(tmp_path):
    x, y, params, objective = small()
    fit(x, y, params, objective, directory=tmp_path)
    twice = jr.objectives.add(objective, objective)
    with pytest.raises(ValueError, match=r"was started with objective .*cross_entropy; got .* \+ "):
        fit(x, y, params, twice, directory=tmp_path, resume=True)


@pytest.mark.usefixtures("untyped")
def test_wrong_input_is_refused():
    x, y, params, objective = small()
    with pytest.raises(ValueError, match="objective must be one of"):
        fit(x, y, params, jr.objectives.cross_entropy)
    with pytest.raises(ValueError, match=r"optimizer must be one of optax.* got float"):
        jr.train.fit(
            objective, params, 0.1, (x, y), key=jax.random.key(0), num_epochs=1, batch_size=8
        )
    with pytest.raises(ValueError, match="batch_size must be at most"):
        fit(x, y, params, objective, batch_size=97)
    with pytest.raises(ValueError, match="num_epochs"):
        fit(x, y, params, objective, num_epochs=0)
    with pytest.raises(ValueError, match="0-255"):
        fit(x * 255, y, params, objective)
    with pytest.raises(ValueError, match="one label for each"):
        fit(x, y[:5], params, objective)
    for key in (0, None, np.zeros(2, np.uint32), jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match="typed key"):
            fit(x, y, params, objective, key=key)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 .*labels beyond"):
        fit(x, y + 1, params, objective)  # a class that the model does not have
    fit(2 * x - 1, y, params, objective, box=jr.Box(-1.0, 1.0))
    common = {"key": jax.random.key(0), "num_epochs": 1, "batch_size": 8}
    with pytest.raises(ValueError, match=r"data must be \(x, y\)"):
        jr.train.fit(objective, params, optax.sgd(0.1), x, **common)
    images = np.concatenate([x, x], 1).reshape(-1, 2, 6, 1).astype(np.float32)
    loaded = jr.data.Dataset(images, y.astype(np.int32), 3)
    flat = jr.objectives.cross_entropy(lambda p, s, x: (x[:, 0, :, 0] @ p["w"], s))
    assert jr.train.fit(flat, {"w": jnp.zeros((6, 3))}, optax.sgd(0.1), loaded, **common).metrics
