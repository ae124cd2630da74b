"""Networks, their explicit layers, transforms, and models of other makes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.ndimage import affine_transform

import jaxrobust as jr
from jaxrobust.models._spatial_transformer import _affine_flow


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (jr.models.mlp(), (28, 28, 1)),
        (jr.models.mlp((7, 5), num_classes=4), (8, 8, 3)),
        (jr.models.small_cnn(), (8, 8, 1)),
        (jr.models.small_cnn(num_classes=3), (9, 7, 2)),
        (jr.models.conv_small((2, 4, 8)), (9, 7, 2)),
    ],
)
def test_exported_layers_are_the_network(model, shape):
    x = jax.random.uniform(jax.random.key(0), (3, *shape))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    np.testing.assert_allclose(
        jax.jit(jr.layers.apply)(model.layers(variables), x),
        jax.jit(model.apply)(variables, x),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("module", [jr.models.mlp((5,)), jr.models.small_cnn()])
def test_layers_of_other_variables_are_refused(module):
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    for wrong in (variables["params"], {"params": {}}, {}):
        with pytest.raises(ValueError, match="variables must be what the module's init returned"):
            module.layers(wrong)


def test_paper_sizes():
    x = jnp.zeros((1, 28, 28, 1))
    shapes = jax.tree.map(jnp.shape, jr.models.mlp().init(jax.random.key(0), x)["params"])
    assert shapes["Dense_0"]["kernel"] == (784, 500)
    assert shapes["Dense_1"]["kernel"] == (500, 10)
    params = jr.models.madry_cnn().init(jax.random.key(0), x)["params"]
    assert params["Conv_0"]["kernel"].shape == (5, 5, 1, 32)
    assert params["Conv_1"]["kernel"].shape == (5, 5, 32, 64)
    assert params["Dense_0"]["kernel"].shape == (7 * 7 * 64, 1024)
    assert np.allclose(params["Dense_0"]["bias"], 0.1)
    # TensorFlow's truncated normal of deviation 0.1: cut at 0.2, so 0.088 remains.
    assert abs(float(params["Dense_0"]["kernel"].std()) - 0.088) < 0.001
    assert float(jnp.abs(params["Dense_0"]["kernel"]).max()) <= 0.2


def test_wide_resnet_has_its_published_size():
    """Convolutions, two numbers a normalised channel, and the dense layer, counted by hand."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(jr.models.wide_resnet().init, jax.random.key(0), x)
    first, *widths = (16, 160, 320, 640)
    convolutions, normalised, before = 9 * 3 * first, 0, first
    for width in widths:
        convolutions += 9 * (before * width + 9 * width * width)  # 1 + 9 of five units
        normalised += before + 9 * width  # in front of every convolution
        before = width
    dense = 640 * 10 + 10
    expected = convolutions + 2 * (normalised + 640) + dense
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected == 45_901_914


def test_preact_resnet18_has_its_published_size():
    """Convolutions, shortcuts, two numbers a normalised channel, and the dense layer, by hand."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(jr.models.preact_resnet18().init, jax.random.key(0), x)
    convolutions, normalised, before = 9 * 3 * 64, 512, 64
    for width in (64, 128, 256, 512):
        convolutions += 9 * (before * width + 3 * width * width)
        convolutions += before * width * (width != before)
        normalised += before + 3 * width  # in front of every 3x3 convolution
        before = width
    expected = convolutions + 2 * normalised + 512 * 10 + 10
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected == 11_172_170


@pytest.mark.parametrize(
    "model",
    [
        jr.models.conv_small((2, 3, 4)),
        jr.models.carlini_wagner_cnn((2, 3, 4)),
        jr.models.PreActResNet((4, 6), num_units=1),
    ],
)
def test_parts_make_the_whole(model):
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 1))
    variables = model.init(jax.random.key(1), x)
    hidden = model.stem(variables, x)
    np.testing.assert_array_equal(model.trunk(variables, hidden), model.apply(variables, x))


def test_wide_resnet_standardises_images_and_trains_against_frozen_statistics():
    model = jr.models.ResNet((4, 4, 6, 8), 1, 3, standardise=True)
    x = np.random.default_rng(0).uniform(0.3, 0.6, (8, 8, 8, 3)).astype(np.float32)
    y = np.arange(8) % 3
    variables = jax.jit(model.init)(jax.random.key(1), x)
    apply = jax.jit(model.apply)
    logits = apply(variables, x)
    np.testing.assert_allclose(apply(variables, 1.5 * x + 0.1), logits, atol=1e-4)
    np.testing.assert_allclose(apply(variables, x[:2]), logits[:2], atol=1e-5)

    forward, frozen = jr.objectives.from_stateful_module(model.apply)
    seen = []

    def attack(logits_fn, x, y, *, key, ball):
        seen.append(logits_fn(x[:1]).shape)
        return jr.attacks.fgsm(logits_fn, x, y, key=key, ball=ball)

    objective = jr.objectives.madry(
        forward, attack, ball=jr.Ball("linf", 0.05), eval_forward=frozen
    )
    done = jr.train.fit(
        objective, variables["params"], optax.sgd(0.1), (x, y), key=jax.random.key(2),
        num_epochs=2, batch_size=4, model_state={"batch_stats": variables["batch_stats"]},
    )  # fmt: skip
    before, after = variables["batch_stats"], done.model_state["batch_stats"]
    assert seen == [(1, 3)]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
    ("depth", "shape"), [(32, (32, 32, 3)), (56, (32, 32, 3)), (56, (28, 28, 1)), (8, (7, 5, 2))]
)
def test_resnet_has_its_published_size(depth, shape):
    """Layers with weights, and their numbers by hand; a dozen known names."""
    model = jr.models.resnet(depth)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    n = (depth - 2) // 6
    params = variables["params"]
    assert set(params) == {
        *(f"Conv_{i}" for i in range(6 * n + 1)),
        *(f"BatchNorm_{i}" for i in range(6 * n + 1)),
        "Dense_0",
    }
    convolutions, normalised, before = 9 * shape[-1] * 16, 0, 16
    for width in (16, 32, 64):
        convolutions += 9 * (before * width + (2 * n - 1) * width * width)
        normalised += before + (2 * n - 1) * width
        before = width
    expected = convolutions + 2 * (normalised + 64) + 64 * 10 + 10
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    published = {(32, 3): 464_154, (56, 3): 853_018}
    assert expected == published.get((depth, shape[-1]), expected)
    logits, embedding = jax.eval_shape(
        functools.partial(model.apply, method="outputs"), variables, x
    )
    assert (logits.shape, embedding.shape) == ((2, 10), (2, 64))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("depth", [2, 31, 54, 56.0, True])
def test_resnets_of_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match="depth must be"):
        jr.models.resnet(depth)


@pytest.fixture(scope="module")
def small_resnet():
    model = jr.models.ResNet((2, 3, 4, 5), num_units=1, num_classes=3)
    x = np.random.default_rng(0).uniform(size=(8, 9, 6, 1)).astype(np.float32)
    return model, jax.jit(model.init)(jax.random.key(1), x), x


def test_resnet_gives_logits_and_embedding_in_one_pass(small_resnet):
    model, variables, x = small_resnet
    logits, embedding = jax.jit(functools.partial(model.apply, method="outputs"))(variables, x)
    np.testing.assert_allclose(model.apply(variables, x), logits, atol=1e-5)
    np.testing.assert_allclose(model.apply(variables, x, method="embed"), embedding, atol=1e-5)
    dense = variables["params"]["Dense_0"]
    np.testing.assert_allclose(embedding @ dense["kernel"] + dense["bias"], logits, atol=1e-5)
    named = jax.tree.map(jnp.shape, variables)
    again = model.init(jax.random.key(1), x, method="outputs")
    assert jax.tree.map(jnp.shape, again) == named


def test_resnet_is_the_network_written_out(small_resnet):
    """Images shifted by a half; convolution, three units, the first of which shares its input."""
    model, variables, x = small_resnet
    variables = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(jax.random.key(2), leaf.shape), variables
    )
    params, stats = variables["params"], variables["batch_stats"]

    def conv(i, h, stride=1):
        return jax.lax.conv_general_dilated(
            h, params[f"Conv_{i}"]["kernel"], (stride, stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def active(i, h):
        scale, moments = params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"]
        h = (h - moments["mean"]) / np.sqrt(moments["var"] + 1e-3)
        h = h * scale["scale"] + scale["bias"]
        return np.where(h > 0, h, 0.1 * h)

    def pooled(h):  # the mean of what there is in each square of two
        rows, cols = (range(0, size, 2) for size in h.shape[1:3])
        return np.stack(
            [np.stack([h[:, i : i + 2, j : j + 2].mean((1, 2)) for j in cols], 1) for i in rows], 1
        )

    h = active(0, conv(0, jnp.asarray(x) - 0.5))
    h = np.asarray(conv(2, active(1, conv(1, h)))) + np.pad(h, [(0, 0)] * 3 + [(0, 1)])
    for first, pad in ((3, (0, 1)), (5, (0, 1))):
        branch = conv(first + 1, active(first, conv(first, active(first - 1, h), 2)))
        h = np.asarray(branch) + np.pad(pooled(h), [(0, 0)] * 3 + [pad])
    embedding = active(6, h).mean((1, 2))
    expected = embedding @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    found = model.apply(variables, x, method="outputs")
    np.testing.assert_allclose(found[1], embedding, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_resnet_trains_on_embeddings_and_is_attacked_frozen(small_resnet):
    model, variables, x = small_resnet
    apply = functools.partial(model.apply, method="outputs")
    forward, frozen = jr.objectives.from_stateful_module(apply)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    y = np.arange(8) % 3
    done = jr.train.fit(
        jr.objectives.pdm(forward), params, optax.sgd(0.05), (x, y), key=jax.random.key(2),
        num_epochs=2, batch_size=4, model_state=state,
    )  # fmt: skip
    after = done.model_state["batch_stats"]
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state["batch_stats"], after)
    assert min(jax.tree.leaves(moved)) > 0

    outputs, kept = frozen(done.params, done.model_state, jnp.asarray(x))
    assert kept is done.model_state
    logits_fn = jr.transforms.reversed_logits(
        jax.tree_util.Partial(apply, {"params": done.params, **done.model_state})
    )
    logits, embedding = logits_fn(jnp.asarray(x))
    np.testing.assert_array_equal(logits, -outputs[0])
    np.testing.assert_array_equal(embedding, outputs[1])
    rows = jax.jit(jax.vmap(lambda image: logits_fn(image[None])[0][0]))
    one = rows(jnp.asarray(x))  # rows alone
    np.testing.assert_allclose(one, logits, atol=1e-5)
    x_adv = jr.attacks.fgsm(
        logits_fn, x, jnp.argmax(logits, -1), key=jax.random.key(0), ball=jr.Ball("linf", 0.1)
    )
    assert float(jnp.abs(x_adv - x).max()) > 0.05


def test_madry_cnn_pools_as_flax_does():
    import flax.linen as nn

    model = jr.models.madry_cnn()
    x = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params = variables["params"]
    h = x
    for name in ("Conv_0", "Conv_1"):
        h = jax.lax.conv_general_dilated(
            h, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = nn.max_pool(nn.relu(h + params[name]["bias"]), (2, 2), (2, 2))
    h = nn.relu(h.reshape(2, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    expected = h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    found = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="multiples of 4"):
        model.init(jax.random.key(0), jnp.zeros((1, 10, 10, 1)))


@pytest.mark.usefixtures("untyped")
def test_layers_refuse_what_is_none():
    with pytest.raises(ValueError, match="layers must hold"):
        jr.layers.apply([jr.layers.Relu, "relu"], jnp.zeros((1, 2)))


def test_normalized_is_the_model_of_raw_images():
    model = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.eye(12)[:, :3])
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    x = jax.random.uniform(jax.random.key(0), (4, 2, 2, 3))
    wrapped = jr.transforms.normalized(model, mean, std)
    np.testing.assert_allclose(wrapped(x), model((x - mean) / std), rtol=1e-5)
    assert wrapped(x).dtype == x.dtype
    assert len(jax.tree.leaves(wrapped)) == 3
    noisy = jr.Randomized(lambda x, key: model(x) + jax.random.normal(key, (len(x), 3)))
    assert isinstance(jr.transforms.normalized(noisy, 0.5, 0.5), jr.Randomized)
    x_adv = jr.attacks.fgsm(
        wrapped, x, jnp.zeros(4, jnp.int32), key=jax.random.key(0), ball=jr.Ball("linf", 0.1)
    )
    assert float(jnp.abs(x_adv - x).max()) <= 0.1 + 1e-6
    with pytest.raises(ValueError, match="std must be positive"):
        jr.transforms.normalized(model, 0.0, 0.0)


def test_reversed_logits_leaves_all_else_alone():
    weights = jnp.eye(12)[:, :3]
    model = jax.tree_util.Partial(lambda w, x: (x.reshape(len(x), -1) @ w, x, {"more": x}), weights)
    x = jax.random.uniform(jax.random.key(0), (4, 2, 2, 3))
    found, expected = jr.transforms.reversed_logits(model)(x), model(x)
    np.testing.assert_array_equal(found[0], -expected[0])
    for same in zip(*map(jax.tree.leaves, (found[1:], expected[1:])), strict=True):
        np.testing.assert_array_equal(*same)
    twice = jr.transforms.reversed_logits(jr.transforms.reversed_logits(model))
    np.testing.assert_array_equal(twice(x)[0], expected[0])
    alone = jr.transforms.reversed_logits(lambda x: x.reshape(len(x), -1))
    np.testing.assert_array_equal(alone(x), -x.reshape(4, -1))

    (leaf,) = jax.tree.leaves(jr.transforms.reversed_logits(model))
    assert leaf is weights
    key = jax.random.key(1)
    noisy = jr.Randomized(lambda x, key: (x[:, 0, 0] + jax.random.normal(key, (len(x), 3)), x))
    reverse = jr.transforms.reversed_logits(noisy)
    assert isinstance(reverse, jr.Randomized)
    np.testing.assert_array_equal(reverse(x, key)[0], -noisy(x, key)[0])

    traces = []

    @jax.jit
    def run(logits_fn, x):
        traces.append(1)
        return logits_fn(x)[0]

    for w in (weights, 2 * weights):  # the weights are an argument: one program
        run(jr.transforms.reversed_logits(jax.tree_util.Partial(model.func, w)), x)
    assert len(traces) == 1


def test_nnx_models_pass_as_callables():
    module = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)

    def apply(state, x):
        return nnx.merge(graph, state)(x)

    logits_fn = jax.tree_util.Partial(apply, state)
    x = jax.random.uniform(jax.random.key(0), (5, 6))
    y = jnp.argmax(logits_fn(x), -1)
    report = jr.evaluate(
        logits_fn, (x, y), attacks={"pgd": jr.attacks.pgd}, ball=jr.Ball("linf", 0.5),
        key=jax.random.key(0), batch_size=5,
    )  # fmt: skip
    assert report.robust_accuracy < report.clean_accuracy == 1.0


@pytest.mark.usefixtures("untyped")
def test_mutable_nnx_modules_are_refused():
    module = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    x = np.zeros((2, 6), np.float32)
    with pytest.raises(ValueError, match=r"nnx\.split"):
        jr.attacks.fgsm(
            module, x, np.zeros(2, np.int32), key=jax.random.key(0), ball=jr.Ball("linf", 0.1)
        )


def test_a_model_may_return_more_than_logits():
    def model(x):
        hidden = jnp.tanh(x)
        return hidden[:, :3], hidden

    def loss(outputs, y):
        logits, embedding = outputs
        return jr.losses.margin(logits, y) - 0.1 * jnp.sum(embedding**2)

    x = jax.random.uniform(jax.random.key(0), (4, 6))
    y = jnp.argmax(model(x)[0], -1)
    x_adv = jr.attacks.pgd(
        model, x, y, key=jax.random.key(1), ball=jr.Ball("linf", 0.1), loss=loss, num_steps=5
    )
    # Where the embedding alone matters, the penalty moves it down.
    assert (np.asarray(x_adv)[:, 3:] < np.asarray(x)[:, 3:]).all()


@pytest.mark.parametrize(
    ("widths", "shape", "flat"),
    [((32, 64, 200), (28, 28, 1), 4 * 4 * 64), ((64, 128, 256), (32, 32, 3), 5 * 5 * 128)],
)
def test_carlini_wagner_cnn_has_its_published_size(widths, shape, flat):
    model = jr.models.carlini_wagner_cnn(widths)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    first, second, dense = widths
    channels = (shape[-1], first, first, second, second)
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(channels))
    affine = (flat + 1) * dense + (dense + 1) * dense + (dense + 1) * 10
    expected = convolutions + affine
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected
    assert expected == {1: 312_202, 3: 1_147_978}[shape[-1]]
    assert jax.eval_shape(model.apply, variables, x).shape == (2, 10)


def test_carlini_wagner_cnn_drops_in_training_only():
    model = jr.models.carlini_wagner_cnn((2, 3, 50), num_classes=3)
    x = jax.random.uniform(jax.random.key(0), (4, 16, 16, 1))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params, state = variables["params"], {"dropout": variables["dropout"]}
    forward, frozen = jr.objectives.from_stateful_module(model.apply)
    first, after = forward(params, state, x)
    again, _ = forward(params, state, x)
    other, _ = forward(params, after, x)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    still, kept = frozen(params, state, x)
    np.testing.assert_array_equal(still, model.apply({"params": params}, x))
    np.testing.assert_array_equal(kept["dropout"]["key"], state["dropout"]["key"])

    def mean_hidden(state, _):  # inverted dropout: the mean over masks is the network without
        outputs, state = forward(params, state, x)
        return state, outputs

    # The second dense layer's ReLU aside: it is taken away by weights of zero before it.
    params = jax.tree.map(jnp.copy, params)
    params["Dense_1"]["bias"] = params["Dense_1"]["bias"] + 10.0
    _, outputs = jax.lax.scan(mean_hidden, state, length=2000)
    np.testing.assert_allclose(outputs.mean(0), frozen(params, state, x)[0], atol=0.05)

    with pytest.raises(ValueError, match="multiples of 4, at least 16"):
        model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 1)))


def test_carlini_wagner_cnn_trains_against_an_attack():
    model = jr.models.carlini_wagner_cnn((2, 3, 8), num_classes=3)
    x = np.random.default_rng(0).uniform(size=(8, 16, 16, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(1), x)
    forward, frozen = jr.objectives.from_stateful_module(model.apply)
    objective = jr.objectives.madry(
        forward, jr.attacks.fgsm, ball=jr.Ball("linf", 0.1), eval_forward=frozen
    )
    state = {"dropout": variables["dropout"]}
    done = jr.train.fit(
        objective, variables["params"], optax.sgd(0.1), (x, np.arange(8) % 3),
        key=jax.random.key(2), num_epochs=1, batch_size=4, model_state=state,
    )  # fmt: skip
    assert not np.array_equal(done.model_state["dropout"]["key"], state["dropout"]["key"])


@pytest.mark.parametrize("shape", [(28, 28), (5, 4, 3), (1, 6, 1), (6, 1), (1, 1)])
def test_a_spatial_transformer_starts_as_its_classifier(shape):
    x = jax.random.uniform(jax.random.key(0), (3, *shape))
    model = jr.models.spatial_transformer(jr.models.mlp((8,)))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params = variables["params"]
    sizes = [params[f"Dense_{i}"]["kernel"].shape for i in range(3)]
    assert sizes == [(x[0].size, 100), (100, 100), (100, 6)]
    alone = jax.jit(model.classifier.apply)({"params": params["classifier"]}, x)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x), alone)


def test_a_spatial_transformer_moves_images_as_scipy_does():
    """Maps between coordinates from -1 to 1, put into pixels by hand."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(5, 6, 9)).astype(np.float32)
    change = rng.normal(size=(5, 2, 3)).astype(np.float32) * 0.3
    move = jax.jit(lambda x, change: jax.vmap(jr.flow.warp)(x, _affine_flow(change, (6, 9))))
    found = move(jnp.asarray(x), jnp.asarray(change))
    half = np.array([5, 8]) / 2
    for image, one, moved in zip(x, change, found, strict=True):
        affine = np.eye(2, 3) + one
        matrix = half[:, None] * affine[:, :2] / half
        offset = half + half * affine[:, 2] - matrix @ half
        expected = affine_transform(image, matrix, offset, order=1, mode="nearest")
        np.testing.assert_allclose(moved, expected, atol=2e-5)


def test_a_spatial_transformer_learns_where_to_look():
    """Gradients reach every layer, and rows do not influence one another."""
    x = jax.random.uniform(jax.random.key(0), (4, 7, 5, 2))
    y = jnp.array([0, 1, 2, 0])
    model = jr.models.spatial_transformer(jr.models.mlp((6,), num_classes=3), (10, 10))
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    objective = jr.objectives.hinge(jr.objectives.from_module(model.apply))
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(params, state):
        batch = jr.types.Batch(x, y, jnp.arange(4))
        out, grads = objective.value_and_grad(params, {}, (), batch, key=jax.random.key(0))
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, out.loss, grads

    state = optimizer.init(params)
    *_, first, grads = step(params, state)
    assert jnp.abs(grads["Dense_2"]["kernel"]).max() > 0  # the others, once it has moved
    for _ in range(60):
        params, state, loss, grads = step(params, state)
    assert loss < 0.5 * first
    assert jnp.abs(params["Dense_2"]["bias"]).max() > 0.01
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    logits = model.apply({"params": params}, x)
    slopes = jax.jit(jax.jacobian(lambda x: model.apply({"params": params}, x)))(x)
    for i, j in itertools.product(range(4), range(4)):
        assert bool((slopes[i, :, j] == 0).all()) == (i != j)
    np.testing.assert_allclose(model.apply({"params": params}, x[:1]), logits[:1], rtol=1e-5)


def test_flat_images_cannot_be_moved():
    with pytest.raises(ValueError, match="x must be images"):
        jr.models.spatial_transformer(jr.models.mlp()).init(jax.random.key(0), jnp.ones((2, 9)))
