"""`diagnose`: each symptom on a model that has it by construction, and on none that has not."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxrobust as jr
from jaxrobust.diagnosis import SYMPTOMS, Findings
from jaxrobust.diagnosis._probes import random_draws
from jaxrobust.diagnosis._run import _everything, _scaled, _Tell
from jaxrobust.evaluation._judge import clean_program, no_derivative
from jaxrobust.types import as_partial

PIXELS, CLASSES, ROWS = 6, 3, 40
KEY = jax.random.key(0)
BALL = jr.Ball("linf", 0.25)
W = jnp.asarray(np.random.default_rng(0).normal(size=(PIXELS, CLASSES)), jnp.float32)
X = np.random.default_rng(1).uniform(size=(ROWS, PIXELS)).astype(np.float32)
STEPS = jnp.arange(9) / 8
TRACES = []


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))

BRANCHES = {
    "honest": lambda x: x @ W,
    "constant": lambda x: jnp.broadcast_to(jnp.arange(CLASSES) == 0, (len(x), CLASSES)) + 0.0,
    "rounded": lambda x: jnp.round(8 * x) @ W,
    "probabilities": lambda x: jax.nn.softmax(x @ W),
    "large": lambda x: 1e4 * (x @ W),
    "nan gradient": lambda x: x @ W + jnp.sqrt(0 * x[:, :1]),
    "nan": lambda x: x @ W * jnp.nan,
    "worn down": lambda x: jnp.round(8 * x) @ W + 1e-4 * x @ W,
    "reversed": lambda x: reversed_gradient(x) @ W,
    "looked up": lambda x: jnp.take(STEPS, jnp.round(8 * x).astype(int), mode="fill") @ W,
}
"""One compiled program serves them all, since the branch is data."""


def switched(branch, x):
    TRACES.append(x.shape)
    return jax.lax.switch(branch, list(BRANCHES.values()), x)


def model(name):
    return jax.tree_util.Partial(switched, jnp.asarray(list(BRANCHES).index(name)))


@functools.cache
def diagnosed(name):
    clean = np.nan_to_num(np.asarray(model(name)(X)))
    return jr.diagnose(
        model(name), X, clean.argmax(-1), key=KEY, ball=BALL, batch_size=ROWS // 4,
        num_steps=10, num_queries=60,
    )  # fmt: skip


def test_an_honest_model_raises_no_doubt_and_every_probe_is_recorded():
    found = diagnosed("honest")
    assert found.names == found.warnings == []
    # of random models, of sources and of detectors
    told = {"averaging finds more", "transfer finds more", "rejected, not withstood"}
    assert set(found.measured) == set(SYMPTOMS) - told
    assert found.clean_accuracy == 1
    assert found.accuracy["many steps, any change"] == 0
    at = [found.accuracy[f"many steps{k}"] for k in (", 0.5 eps", "", ", 2 eps")]
    assert at[0] >= at[1] >= at[2] < at[0]


@pytest.mark.parametrize(
    "name,symptoms",
    [
        ("constant", {"constant outputs"}),
        ("rounded", {"zero gradients", "shattered gradients", "loss does not rise",
                     "unbounded attack fails", "random search finds more",
                     "black box finds more"}),
        ("probabilities", {"probabilities"}),
        ("large", {"zero gradients", "saturated logits", "loss does not rise",
                   "another loss finds more"}),
        ("nan gradient", {"gradients not finite", "attack failed: many steps",
                          "unbounded attack fails", "black box finds more"}),
        ("nan", {"logits not finite", "gradients not finite"}),
        ("worn down", {"vanishing gradients", "shattered gradients"}),
        ("reversed", {"shattered gradients", "loss does not rise", "unbounded attack fails",
                      "larger radius, no more success", "black box finds more"}),
        # defined in the box alone, where differences must stay
        ("looked up", {"zero gradients", "shattered gradients", "larger radius, no more success",
                       "black box finds more"}),
    ],
)  # fmt: skip
def test_each_symptom_is_found_where_it_is(name, symptoms):
    found = diagnosed(name)
    assert symptoms <= set(found.names), found
    assert all(finding.meaning and finding.cure for finding in found.found)
    assert all(np.isfinite(list(found.measured.values())))
    assert found.thresholds.keys() == found.measured.keys()


def test_nothing_else_is_asked_of_a_model_that_does_not_look():
    found = diagnosed("constant")
    assert found.names == ["constant outputs"]
    assert found.measured == {"constant outputs": 1.0}
    assert found.accuracy == {}
    assert found.clean_accuracy == 1
    assert {row[2:] for row in found.rows() if row[0] == "black box finds more"} == {
        (None, SYMPTOMS["black box finds more"].threshold, "not asked")
    }


HEIGHTS = [
    # Steps of 0.0625 go to and fro about the first ripple; one of 0.25 passes three.
    lambda x: x[:, 0] - 0.25 + 0.15 * jnp.sin(10 * jnp.pi * x[:, 0]),
    # Steps for half the radius end in the gap about 0.06, longer ones go to and fro across it.
    lambda x: 0.01 - jnp.abs(x[:, 0] - 0.06),
    # So certain, where the second pixel is white, that the cross-entropy has no gradient.
    lambda x: x[:, 0] - 0.1 - 200 * x[:, 1],
]
"""How far above the first class the second is."""


def second_class(which, x):
    return jnp.stack([jnp.zeros(len(x)), jax.lax.switch(which, HEIGHTS, x)], -1)


def of_two_pixels(which, x):
    found = jr.diagnose(
        jax.tree_util.Partial(second_class, jnp.asarray(which)), x, np.zeros(len(x), int),
        key=KEY, ball=BALL, num_steps=10, num_queries=5, batch_size=200,
    )  # fmt: skip
    assert found.clean_accuracy == 1
    return found


@pytest.mark.parametrize(
    "which,name", [(0, "one step beats many"), (1, "larger radius, less success")]
)
def test_attacks_that_should_do_more_do_less(which, name):
    found = of_two_pixels(which, np.zeros((8, 2), np.float32))
    assert found.measured[name] == 1
    assert name in found.names


def test_three_stubborn_images_among_many_are_no_symptom():
    x = np.zeros((200, 2), np.float32)
    x[:3, 1] = 1.0
    found = of_two_pixels(2, x)
    assert found.accuracy["many steps, any change"] == pytest.approx(3 / 200)
    assert found.measured["larger radius, no more success"] == 0
    assert found.names == ["zero gradients"]


def test_averaging_finds_more_where_each_draw_shows_half_of_the_pixels():
    def seen(x, key):
        shown = jax.random.bernoulli(key, 0.5, x.shape[1:])
        mean = jnp.mean(2 * shown * (x - 0.4), -1)
        return jnp.stack([mean, -mean], -1)

    x = np.full((8, 200), 0.5, np.float32)
    found = jr.diagnose(
        jr.Randomized(seen), x, np.zeros(8, int), key=KEY, ball=jr.Ball("linf", 0.15),
        num_steps=10, num_queries=5, batch_size=8,
    )  # fmt: skip
    assert "averaging finds more" in found.names
    assert found.accuracy["many steps, margin"] < found.accuracy["many steps, margin, one draw"]


def test_another_models_images_are_tried_and_equal_keys_find_equal_things():
    y = np.asarray(model("rounded")(X)).argmax(-1)
    found = jr.diagnose(
        model("rounded"), X, y, key=KEY, ball=BALL, batch_size=ROWS // 4, num_steps=10,
        num_queries=60, sources={"honest": model("honest")},
    )  # fmt: skip
    assert "transfer finds more: honest" in found.names
    before = diagnosed("rounded")
    shared = {name: found.measured[name] for name in before.measured}
    assert shared == before.measured


def test_where_nothing_is_right_nothing_is_learned():
    found = jr.diagnose(
        model("honest"), X, np.asarray(X @ W).argmin(-1), key=KEY, ball=BALL,
        batch_size=ROWS // 4, num_steps=10, num_queries=60,
    )  # fmt: skip
    assert found.clean_accuracy == 0
    assert found.names == ["too few images"]
    assert found.warnings
    asked = {name for name, *_, verdict in found.rows() if verdict != "not asked"}
    assert not {name for name in asked if SYMPTOMS[name].compares}
    assert {"zero gradients", "shattered gradients"} <= asked


def test_one_trace_a_probe_whatever_the_weights():
    """Of a batch shape of its own, so that what other tests compiled does not count."""

    def traces(name, eps, seed):
        before = len(TRACES)
        jr.diagnose(
            model(name), X, np.asarray(X @ W).argmax(-1), key=jax.random.key(seed),
            ball=jr.Ball("linf", eps), batch_size=ROWS // 2, num_steps=10, num_queries=60,
        )  # fmt: skip
        return len(TRACES) - before

    # clean images, noise and gradients (5), each of five attacks and its judge, and what follows
    assert traces("honest", 0.25, 0) <= 30
    # the shape of its logits, and whether it has a derivative
    assert traces("rounded", 0.125, 5) == 2


def test_a_random_model_is_stochastic_and_nothing_worse():
    noisy = jr.Randomized(lambda x, key: x @ W + 0.1 * jax.random.normal(key, (CLASSES,)))
    y = np.asarray(X @ W).argmax(-1)
    clear = np.sort(np.asarray(X @ W))[:, -1] - np.sort(np.asarray(X @ W))[:, -2] > 0.5
    found = jr.diagnose(
        noisy, X[clear][:16], y[clear][:16], key=KEY, ball=BALL, batch_size=4, num_steps=5,
        num_queries=10,
    )  # fmt: skip
    assert found.names == ["stochastic gradients"]
    assert "averaging finds more" in found.measured
    assert "another loss finds more" not in found.measured


def test_a_model_without_any_derivative_is_attacked_without():
    def host(x):
        shape = jax.ShapeDtypeStruct((len(x), CLASSES), jnp.float32)
        product = lambda x: np.asarray(x, np.float32) @ np.asarray(W)
        return jax.pure_callback(product, shape, x, vmap_method="broadcast_all")

    y = np.asarray(X @ W).argmax(-1)
    found = jr.diagnose(host, X, y, key=KEY, ball=BALL, batch_size=ROWS, num_queries=20)
    assert {"no gradients", "black box finds more"} <= set(found.names)
    told = {"probabilities", "random search finds more", "black box finds more"}
    assert set(found.measured) == told | {"constant outputs"}


def test_whatever_a_derivative_raises_is_no_derivative():
    @jax.custom_vjp
    def once(x):
        return x

    def back(*_):
        raise RuntimeError("no gradient for you")

    once.defvjp(lambda x: (x, None), back)
    error = no_derivative(lambda x: once(x) @ W, X, np.zeros(ROWS, int), KEY)
    assert isinstance(error, RuntimeError)
    assert no_derivative(model("honest"), X, np.zeros(ROWS, int), KEY) is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_probabilities_are_known_in_every_precision(dtype):
    judge = clean_program(1, tuple(jax.local_devices()))
    keys = jax.random.split(KEY, ROWS)
    for many in (2, 100):
        logits = lambda x, many=many: (jnp.tile(x @ W, (1, many))).astype(dtype)
        soft = judge(
            as_partial(lambda x, f=logits: jax.nn.softmax(f(x))), X, keys
        ).like_probabilities
        assert soft.mean() > 0.9
        assert (
            judge(as_partial(lambda x, f=logits: jnp.abs(f(x))), X, keys).like_probabilities.mean()
            < 0.1
        )


def test_a_model_of_half_precision_has_derivatives():
    half = lambda x: x.astype(jnp.bfloat16) @ W.astype(jnp.bfloat16)
    y = np.asarray(half(X)).argmax(-1)
    found = jr.diagnose(half, X, y, key=KEY, ball=BALL, batch_size=ROWS, num_steps=3, num_queries=5)
    assert "no gradients" not in found.names
    assert found.measured["shattered gradients"] < 0.5


def test_a_model_of_numpy_arrays_is_told_what_to_do():
    y = np.asarray(X @ W).argmax(-1)
    with pytest.raises(ValueError, match=r"a function of JAX arrays.*vmap_method='sequential'"):
        jr.diagnose(lambda x: np.asarray(x) @ np.asarray(W), X, y, key=KEY, ball=BALL)


def test_a_rejected_image_is_not_broken_and_a_source_is_tried():
    """A detector that lets through the clean images alone leaves nothing for any attack."""
    y = np.asarray(X @ W).argmax(-1)
    shown = lambda x: (x @ W, x)
    clean = jnp.asarray(X)
    known = lambda outputs: (
        1e-6 - jnp.min(jnp.max(jnp.abs(outputs[1][:, None] - clean), -1), axis=-1)
    )
    found = jr.diagnose(
        shown, X, y, key=KEY, ball=BALL, detectors={"known": known}, num_steps=3, num_queries=5,
        sources={"honest": model("honest")}, batch_size=ROWS // 4,
    )  # fmt: skip
    assert set(found.accuracy.values()) == {1.0}
    assert found.warnings == [found.found[0]]  # and no doubt about the gradients
    assert found.names == ["rejected, not withstood"]
    assert found.measured["transfer finds more: honest"] == 0
    half = lambda outputs: outputs[1][:, 0] - 0.5  # what it rejects clean is wrong, not withstood
    found = jr.diagnose(
        shown, X, y, key=KEY, ball=jr.Ball("linf", 0.0), detectors={"half": half}, num_steps=3,
        num_queries=5, batch_size=ROWS // 4,
    )  # fmt: skip
    assert found.clean_accuracy == (X[:, 0] >= 0.5).mean()
    assert found.accuracy["many steps"] == found.clean_accuracy
    assert found.measured["rejected, not withstood"] == 0


def test_comparisons_count_and_need_three_images():
    tell = _Tell(np.arange(200) < 100)
    some, others = np.arange(200) < 5, np.arange(200) < 2
    tell.compare("one step beats many", some, others)
    (finding,) = tell.found
    assert (finding.value, finding.threshold) == (pytest.approx(0.03), 0.025)
    assert finding.examples == [2, 3, 4]
    tell.compare("one step beats many", some, np.arange(200) < 3)
    assert len(tell.found) == 1  # two more are chance
    assert tell.thresholds == {"one step beats many": 0.025}


@pytest.mark.parametrize("norm,width", [("linf", 2.0), ("l2", 2 * 6**0.5), ("l1", 12.0)])
def test_the_unbounded_ball_holds_the_box(norm, width):
    ball = _everything(jr.Ball(norm, 0.1, jr.Box(-1.0, 1.0)), X)
    assert ball.eps == pytest.approx(width)
    low, high = -jnp.ones(PIXELS), jnp.ones(PIXELS)
    np.testing.assert_allclose(ball.project(low, high), high, atol=1e-6)
    assert np.max(_scaled(jr.Ball("linf", 0.8), 2.0).eps) == 1.0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_draws_stay_in_the_ball_and_find_what_is_common(norm):
    ball, y = jr.Ball(norm, 0.4), jnp.zeros(4, int)
    x = jnp.full((4, 2), 0.5)
    half = lambda x: jnp.stack([0.5 - x[:, 0], x[:, 0] - 0.5], -1)  # wrong on half of the ball
    keys = jax.random.split(KEY, 4)
    found = random_draws(half, x, y, key=keys, ball=ball, num_draws=30)
    assert (np.asarray(half(found)).argmax(-1) != y).all()
    distances = jax.vmap(ball.distance)(x, found)
    assert (np.asarray(distances) <= 0.4 + 1e-6).all()
    alone = random_draws(half, x[2:3], y[2:3], key=keys[2:3], ball=ball, num_draws=30)
    np.testing.assert_array_equal(alone[0], found[2])  # whoever its neighbours are


def test_mistakes_are_refused(untyped):
    y = np.zeros(ROWS, int)
    with pytest.raises(ValueError, match="ball must be"):
        jr.diagnose(model("honest"), X, y, key=KEY, ball=0.1)
    with pytest.raises(ValueError, match="num_steps must be"):
        jr.diagnose(model("honest"), X, y, key=KEY, ball=BALL, num_steps=0)
    with pytest.raises(ValueError, match="key must be"):
        jr.diagnose(model("honest"), X, y, key=0, ball=BALL)
    with pytest.raises(ValueError, match="labels"):
        jr.diagnose(model("honest"), X, y + 7, key=KEY, ball=BALL)
    with pytest.raises(ValueError, match=r"^x must be float"):
        jr.diagnose(model("honest"), X.astype(int), y, key=KEY, ball=BALL)
    for sources, what in (
        ([model("honest")], "sources must be a dictionary by name; got list"),
        ({"it": 3}, "source 'it' must be a function of images; got 3"),
        ({"it": lambda x: x @ W[:, :2]}, "source 'it' must return logits of 3 classes"),
    ):
        with pytest.raises(ValueError, match=what):
            jr.diagnose(model("honest"), X, y, key=KEY, ball=BALL, sources=sources)


def test_findings_are_saved_shown_and_printed(tmp_path):
    found = diagnosed("rounded")
    assert Findings.restored(json.loads(json.dumps(found.summary()))) == found
    page = jr.report.save({"rounded": found, "honest": diagnosed("honest")}, tmp_path).read_text()
    document = jr.report.load(tmp_path)
    assert document.entries[0].diagnoses == {"linf 0.25": found}
    assert "Does it hide its gradients?" in page
    assert "<dt>gradient</dt>" in page
    for finding in found.found:
        assert finding.name in page
    assert "None of the probes raised a doubt" in page
    assert "must not be believed before this is cured: <a" in page
    assert "no sign</a> was found that it hides its gradients" in page
    assert "not evaluated" not in page
    assert "<title>Does it hide its gradients?" in page
    assert "Right: 100.0\xa0% under no attack; " in page
    assert "% under many steps, any change" in page
    assert 'id="training"' not in page
    assert 'id="method"' not in page
    assert "examples.npz" not in page
    assert "raised no doubt about these numbers" not in page
    console = Console(width=100, record=True, file=io.StringIO())
    jr.report.print_tables(document, console)
    shown = console.export_text()
    assert "Warning: zero gradients" in shown
    assert "Right: 100.0\xa0% under no attack; " in shown
    assert "Findings: none" in shown


def test_rescaled_logits_bring_the_gradient_back():
    x = jnp.asarray(X)
    large, y = model("large"), jnp.argmax(x @ W, -1)
    slope = lambda f: jax.grad(
        lambda x: jnp.sum(jax.vmap(jr.losses.cross_entropy)(f(x), y))
    )(x)  # fmt: skip
    assert (np.abs(slope(large)).max(1) == 0).mean() > 0.5
    for temperature in (1e4, None):
        rescaled = jr.transforms.rescaled_logits(large, temperature)
        assert (np.abs(slope(rescaled)).max(1) > 0).all()
        np.testing.assert_array_equal(rescaled(x).argmax(-1), y)
    unit = jr.transforms.rescaled_logits(lambda x: 3 * (x @ W))
    np.testing.assert_allclose(np.std(unit(x), -1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        unit(x), jr.transforms.rescaled_logits(lambda x: x @ W)(x), rtol=1e-5
    )
    with pytest.raises(ValueError, match="temperature"):
        jr.transforms.rescaled_logits(large, 0.0)
    both = jr.transforms.rescaled_logits(lambda x: (x @ W, x), 2.0)(x)
    np.testing.assert_allclose(both[0], x @ W / 2, rtol=1e-6)
    np.testing.assert_array_equal(both[1], x)
