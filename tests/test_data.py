"""Data: the embedded digits, and TFDS sets read without TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest

import jaxrobust as jr

PREPARED = os.environ.get("TFDS_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not PREPARED, reason="TFDS_DATA_DIR is not set, so there is no prepared MNIST to read"
)


def test_digits():
    train, test = jr.data.load("digits"), jr.data.load("digits", "test")
    assert train.x.shape == (1400, 8, 8, 1)
    assert test.x.shape == (397, 8, 8, 1)
    assert train.x.dtype == np.float32
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)
    assert set(train.y) == set(range(10))
    assert train.num_classes == 10


def test_splits_in_tfds_syntax():
    train = jr.data.load("digits", "train")
    head, tail = jr.data.load("digits", "train[:-200]"), jr.data.load("digits", "train[-200:]")
    np.testing.assert_array_equal(np.concatenate([head.x, tail.x]), train.x)
    tenth = jr.data.load("digits", "train[:10%]")
    np.testing.assert_array_equal(tenth.y, train.y[:140])
    assert len(jr.data.load("digits", "train[:3]+test[:4]").y) == 7
    for wrong in ("valid", "train[", "train[5:2]"):
        with pytest.raises(ValueError, match="split"):
            jr.data.load("digits", wrong)


@needs_mnist
def test_mnist_is_decoded_once_and_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXROBUST_CACHE", str(tmp_path))
    test = jr.data.load("mnist", "test")
    assert test.x.shape == (10_000, 28, 28, 1)
    assert test.x.max() == 1.0
    assert test.y[:10].tolist() != sorted(test.y[:10].tolist())
    (cached,) = tmp_path.iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])
    again = jr.data.load("mnist", "test[:100]")
    np.testing.assert_array_equal(again.x, test.x[:100])
    assert cached.stat().st_size > len(whole) // 2
    stamp = cached.stat().st_mtime_ns
    jr.data.load("mnist", "test")
    assert cached.stat().st_mtime_ns == stamp


@needs_mnist
def test_reading_needs_no_tensorflow(tmp_path):
    code = (
        "import sys, jaxrobust as jr\n"
        "data = jr.data.load('cifar10', 'test[:5]')\n"
        "assert data.x.shape == (5, 32, 32, 3)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    environment = dict(os.environ, JAXROBUST_CACHE=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_what_is_not_prepared_says_how(tmp_path):
    with pytest.raises(ValueError, match="download_and_prepare"):
        jr.data.load("mnist", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="no TFDS data set 'mnistt'"):
        jr.data.load("mnistt", data_dir=str(tmp_path))


def test_images_of_different_shapes_are_resized_to_their_middle_square(tmp_path, monkeypatch):
    """Two wide colour images: their edges are red, and only their middle is kept."""
    monkeypatch.setenv("JAXROBUST_CACHE", str(tmp_path))
    given = [np.zeros((side, 2 * side, 3), np.uint8) for side in (6, 9)]
    for image in given:
        side = len(image)
        image[..., 0] = 255
        image[:, side // 2 : side // 2 + side] = (0, 51, 102)
    records = [{"image": image, "label": label} for label, image in enumerate(given)]
    stub = lambda name, data_dir: (lambda split: records, {"train": 2}, 2, f"stub-{name}")
    monkeypatch.setattr("jaxrobust.data._tfds", stub)
    for _ in range(2):  # decoded, then from the cache
        found = jr.data.load("wide", size=4)
        assert found.x.shape == (2, 4, 4, 3)
        middle = np.broadcast_to(np.float32([0, 0.2, 0.4]), (2, 4, 4, 3))
        np.testing.assert_allclose(found.x, middle, atol=1 / 254)  # a grey level of rounding
    assert jr.data.load("wide", size=3).x.shape == (2, 3, 3, 3)
    cached = sorted(tmp_path.iterdir())
    one = jr.data.load("wide", "train[1:]", size=5)  # decoded alone
    assert one.x.shape == (1, 5, 5, 3)
    assert one.y.tolist() == [1]
    assert sorted(tmp_path.iterdir()) == cached
    np.testing.assert_array_equal(jr.data.load("wide", "train[1:]", size=4).x, found.x[1:])
    with pytest.raises(ValueError, match="size must say what to make them"):
        jr.data.load("wide")
    for name, size in (("wide", 0), ("digits", 8)):
        with pytest.raises(ValueError, match=f"size .* got {size}"):
            jr.data.load(name, size=size)
