"""AutoAttack: who its members are, that they make one attack, and what evaluate says of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import images, problem

import jaxrobust as jr
from jaxrobust.evaluation._count import count

KEY = jax.random.key(8)
SQUARE = functools.partial(jr.attacks.square, num_queries=60)


def test_members():
    members = jr.attacks.autoattack_members
    standard, plus, rand = members(), members("plus", "l2"), members("rand")
    assert {"apgd-ce", "apgd-t", "square"} <= set(standard)
    assert {"apgd-ce", "apgd-dlr", "square", "apgd-t"} <= set(plus)
    assert list(rand) == ["apgd-ce", "apgd-dlr"]
    assert "square" not in members("standard", "l1")
    assert standard["square"].keywords == {"num_queries": 5000, "rescale": False}
    assert standard["apgd-ce"].keywords["num_restarts"] == 1
    assert plus["apgd-dlr"].keywords["num_restarts"] == 5
    assert plus["apgd-dlr"].keywords["loss"] is jr.losses.dlr
    in_l1 = members("standard", "l1")
    assert in_l1["apgd-t"].keywords == {"num_targets": 5, "larger_eps": True}
    assert all(members()[name] is attack for name, attack in standard.items())


def test_one_attack_is_its_members_in_turn_and_is_traced_once():
    logits_fn, layers, x, y = problem(9, batch=20)
    traces = []

    def counted(weights, x):
        traces.append(len(x))
        return jr.layers.apply(weights, x)

    model = jax.tree_util.Partial(counted, jax.tree.map(jnp.asarray, layers))
    ball = jr.Ball("linf", 0.12)
    x_adv = jr.attacks.autoattack(model, x, y, key=KEY, ball=ball, chunk=12)
    robust = np.asarray(logits_fn(x_adv)).argmax(-1) == y
    members = jr.attacks.autoattack_members("standard", "linf")
    report = jr.evaluate(logits_fn, (x, y), attacks=members, ball=ball, key=KEY, batch_size=5)
    np.testing.assert_array_equal(robust, report.examples["robust"])
    assert 0 < robust.sum() < 20
    before = len(traces)
    jr.attacks.autoattack(model, x, y, key=KEY, ball=ball, chunk=12)
    assert len(traces) == before + 1  # for the shape of its logits


@pytest.mark.parametrize("version", ["standard", "plus"])
def test_its_members_spend_what_is_published(version):
    """Of three classes: 100 steps of APGD, and of APGD and FAB to two targets; 5000 queries.

    "plus": five restarts of APGD on two losses, and of FAB with a gradient for each class.
    """
    logits_fn, _, x, _ = problem(9, batch=1)
    spent = {
        "apgd-ce": (101, 2 * 101),  # a gradient and a forward at each point
        "apgd-t": (2 * 101, 4 * 101 + 1),  # and what the clean image is taken for
        "fab-t": (2 * 100, 2 * 100 * 2 + 6 + 1),  # the final search of 3 steps for each, likewise
        "square": (0, 5000),
    }
    if version == "plus":
        spent |= dict.fromkeys(("apgd-ce", "apgd-dlr"), (5 * 101, 5 * 2 * 101))
        spent["fab"] = (5 * 100 * 3, 5 * 100 * 2 + 6)
    assert spent.keys() == jr.attacks.autoattack_members(version).keys()
    spent["judged"] = (0, 1 + len(spent))  # the clean image, and each member's
    of_all = tuple(sum(each) for each in zip(*spent.values(), strict=True))
    attack = functools.partial(jr.attacks.autoattack, version=version)
    assert count(attack, logits_fn, x, jr.Ball("linf", 0.1)) == of_all


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_first_member_sees_past_saturated_probabilities(norm):
    """Logits 100,000 times as large: nothing is left of the cross-entropy's gradient in float32."""
    logits_fn, layers, x, y = problem(9, batch=20)
    large = jax.tree_util.Partial(lambda weights, x: 1e5 * jr.layers.apply(weights, x), layers)
    ball = jr.Ball(norm, {"linf": 0.2, "l2": 0.4, "l1": 0.8}[norm])
    for version in ("standard", "plus"):
        first = jr.attacks.autoattack_members(version, norm)["apgd-ce"]
        few = functools.partial(first, num_steps=20)
        wrong = lambda attack, model: (
            np.asarray(logits_fn(attack(model, x, y, key=KEY, ball=ball))).argmax(-1) != y
        )
        broken = wrong(few, logits_fn)
        assert 5 < broken.sum() < 20
        sees = wrong(few, large)
        assert sees.sum() >= broken.sum()
    blind = functools.partial(few, loss=jr.losses.cross_entropy)
    np.testing.assert_array_equal(wrong(blind, logits_fn), broken)
    assert wrong(blind, large).sum() < sees.sum() - 1


@pytest.mark.usefixtures("untyped")
def test_wrong_input_is_refused():
    logits_fn, _, x, y = problem(1)
    call = {"key": KEY, "ball": jr.Ball("linf", 0.1)}
    with pytest.raises(ValueError, match="version must be one of standard, plus, rand"):
        jr.attacks.autoattack(logits_fn, x, y, **call, version="fast")
    with pytest.raises(ValueError, match="norm must be one of"):
        jr.attacks.autoattack_members("standard", "l0")
    with pytest.raises(ValueError, match="chunk"):
        jr.attacks.autoattack(logits_fn, x, y, **call, chunk=0)


def findings(model, x, y, attacks, **options):
    report = jr.evaluate(
        model, (x, y), attacks=attacks, ball=jr.Ball("linf", 0.2), key=KEY, batch_size=4, **options
    )
    return report, {finding.name: finding for finding in report.findings}


def sums(x):
    return jnp.stack([x.sum(-1), 3 - x.sum(-1)], -1)


def test_random_predictions_are_noticed():
    x = images(0, 24)
    y = np.asarray(sums(x).argmax(-1)).astype(np.int32)

    def noisy(x, key):  # where the first pixel is bright
        noise = 40 * (x[:, :1] > 0.5) * jax.random.normal(key, (1, 1))
        return sums(x) + jnp.array([1.0, 0.0]) * noise

    attacks = {"fgsm": jr.attacks.fgsm}
    _, found = findings(jr.Randomized(noisy), x, y, attacks)
    finding = found["random predictions"]
    assert finding.severity == "warning"
    assert 0 < finding.value < 1
    assert finding.value * 24 == round(finding.value * 24)
    assert (x[finding.examples, 0] > 0.5).all()
    _, found = findings(jr.Randomized(lambda x, key: sums(x)), x, y, attacks)
    assert found == {}


def test_hidden_gradients_are_noticed():
    x = images(1, 24)
    y = np.asarray(sums(x).argmax(-1)).astype(np.int32)

    def hidden(x):
        return sums(jax.lax.stop_gradient(x)) + 0 * x.sum()

    fgsm = {"fgsm": jr.attacks.fgsm}
    report, found = findings(hidden, x, y, fgsm | {"square": SQUARE})
    assert found["zero gradients"].value == 1
    assert found["zero gradients"].examples == list(range(10))
    finding = found["gradient masking suspected: square"]
    newly = report.examples["broken_by"] == "square"
    assert finding.value == newly.mean() > finding.threshold
    assert finding.examples == np.flatnonzero(newly)[:10].tolist()
    assert set(findings(hidden, x, y, {"square": SQUARE} | fgsm)[1]) == {"zero gradients"}
    assert findings(hidden, x, y, {"square": SQUARE})[1] == {}  # nothing rests on gradients
    assert findings(sums, x, y, fgsm | {"square": SQUARE})[1] == {}


def test_only_the_first_batch_pays_for_gradients():
    x = images(2, 24)
    y = np.asarray(sums(x).argmax(-1)).astype(np.int32)
    first = jax.device_count() * 4
    late = np.flatnonzero(np.arange(24) >= first)

    def partly(x):  # flat where the first pixel is one
        flat = x[:, :1] == 1
        return sums(jnp.where(flat, jax.lax.stop_gradient(x), x))

    x[:, 0] = 0.5
    x[[1, *late], 0] = 1
    y = np.asarray(partly(x).argmax(-1)).astype(np.int32)
    _, found = findings(partly, x, y, {"fgsm": jr.attacks.fgsm})
    assert found["zero gradients"].examples == [1]
    assert found["zero gradients"].value == 1 / first
