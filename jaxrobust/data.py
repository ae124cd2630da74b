"""Image sets as arrays in [0, 1]: scikit-learn's digits, or any prepared TFDS image set."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from jaxrobust import checks

DIGITS_TRAIN = 1400
"""The first 1400 of scikit-learn's 1797 digits train, the other 397 (other writers) test."""


class Dataset(NamedTuple):
    """A split in memory.

    Attributes:
        x: `(n, height, width, channels)` images in [0, 1].
        y: `(n,)` labels in `0..num_classes-1`.
        num_classes: Number of classes.
    """

    x: Float32[np.ndarray, "n h w c"]
    y: Int32[np.ndarray, " n"]
    num_classes: int


def load(
    name: str = "digits",
    split: str = "train",
    *,
    size: int | None = None,
    data_dir: str | None = None,
) -> Dataset:
    """Load a split.

    Decoded TFDS splits are cached under `$JAXROBUST_CACHE` (`~/.cache/jaxrobust` by default).
    No TensorFlow is needed. What is loaded lies in memory, as float32. With `size`, a part of a
    split (`"train[:10000]"` of ImageNet) is decoded alone, and not cached.

    Args:
        name: "digits" (8x8, embedded in scikit-learn) or the name of any TFDS image set with
            features "image" and "label", such as "mnist" or "cifar10".
        split: In TFDS syntax: "train", "test", "train[:-5000]", "train[80%:]", "train+test", ...
        size: Side, in pixels, that the middle square of each TFDS image is resized to (bicubic);
            needed where a set's images differ in shape, as ImageNet's do.
        data_dir: Where TFDS data sets lie; `$TFDS_DATA_DIR` or TFDS's own default where None.

    Raises:
        ValueError: If the set or split does not exist or is not prepared; says how to prepare it.

    >>> load("digits", "test").x.shape
    (397, 8, 8, 1)
    """
    if size is not None:
        checks.check_count(size, "size")
    if name == "digits":
        if size is not None:
            raise ValueError(f"size is for TFDS image sets, digits are 8x8; got {size}")
        splits = _digits()
        num_classes = 10
        sizes = {part: len(y) for part, (_, y) in splits.items()}
        parts = _parts(split, sizes)
        pieces = [(splits[part][0][rows], splits[part][1][rows]) for part, rows in parts]
    else:
        source, sizes, num_classes, identity = _tfds(name, data_dir)
        parts = _parts(split, sizes)
        pieces = []
        for part, rows in parts:
            pieces.append(_decoded(name, part, rows, sizes[part], source, identity, size))
    x = np.concatenate([x for x, _ in pieces]).astype(np.float32) / (
        16 if name == "digits" else 255
    )
    y = np.concatenate([y for _, y in pieces]).astype(np.int32)
    if len(y) == 0:
        raise ValueError(f"split {split!r} of {name} holds no examples")
    return Dataset(x, y, num_classes)


def _digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x, y = digits.images[..., None], digits.target
    return {
        "train": (x[:DIGITS_TRAIN], y[:DIGITS_TRAIN]),
        "test": (x[DIGITS_TRAIN:], y[DIGITS_TRAIN:]),
    }


def _parts(split: str, sizes: dict[str, int]) -> list[tuple[str, slice]]:
    """Resolve a split in TFDS syntax to named parts and their rows."""
    if split in sizes:
        return [(split, slice(None))]
    tfds = _import_tfds()
    try:
        infos = {part: SimpleNamespace(num_examples=size) for part, size in sizes.items()}
        absolute = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        return [(part.splitname, slice(part.from_, part.to)) for part in absolute]
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"split must be made of {', '.join(sizes)} in TFDS syntax, such as 'train[:90%]'; "
            f"got {split!r}"
        ) from error


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            "this data needs the package tensorflow-datasets, which is not installed"
        ) from error
    return tfds


def _tfds(name: str, data_dir: str | None) -> tuple[Any, dict[str, int], int, str]:
    tfds = _import_tfds()
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        info = builder.info
        sizes = {part: int(s.num_examples) for part, s in info.splits.items()}
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(f"there is no TFDS data set {name!r}: {_line(error)}") from error
    where = builder.data_path
    if not sizes or not where.exists():
        raise ValueError(
            f"TFDS data set {name!r} is not prepared under {data_dir or 'the default data_dir'}: "
            "set TFDS_DATA_DIR to a folder that holds it, or prepare it with "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare() "
            "(that step needs TensorFlow)"
        )
    features = info.features
    if not {"image", "label"} <= set(features):
        raise ValueError(
            f"TFDS data set {name!r} must have features image and label; got {sorted(features)}"
        )
    identity = f"{info.full_name}-{hashlib.sha256(str(where).encode()).hexdigest()[:12]}"
    return builder.as_data_source, sizes, int(features["label"].num_classes), identity


def _decoded(
    name: str, part: str, rows: slice, number: int, source: Any, identity: str, size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one split as uint8 arrays, from the cache where it holds them."""
    folder = Path(os.environ.get("JAXROBUST_CACHE", Path.home() / ".cache" / "jaxrobust"))
    resized = "" if size is None else f"-{size}"
    path = folder / f"{identity.replace('/', '-')}{resized}-{part}.npz"
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                x, y = stored["x"], stored["y"]
            if len(x) == len(y) == number:
                return x[rows], y[rows]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            pass  # half-written or damaged: decode again
    try:
        records = source(split=part)
    except NotImplementedError as error:
        raise ValueError(
            f"TFDS data set {name!r} must be prepared as array_record to be read without "
            f"TensorFlow: {_line(error)}"
        ) from error
    wanted = range(number)[rows]
    alone = size is not None and 0 < len(wanted) < number
    images, labels = [], []
    for record in (records[row] for row in wanted) if alone else records:
        images.append(record["image"] if size is None else _resized(record["image"], size))
        labels.append(record["label"])
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(
            f"images of {name!r} differ in shape, so size must say what to make them; "
            f"got None and {len(shapes)} shapes"
        )
    x, y = np.stack(images), np.array(labels)
    if alone:
        return x, y
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez_compressed(partial, x=x, y=y)
    os.replace(partial, path)
    return x[rows], y[rows]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """Its middle square, with this side; the channels stay."""
    from PIL import Image

    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = image[top : top + side, left : left + side]
    resized = Image.fromarray(middle[..., 0] if channels == 1 else middle).resize((size, size))
    return np.asarray(resized).reshape(size, size, channels)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
