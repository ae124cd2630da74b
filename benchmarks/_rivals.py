"""Our networks as PyTorch modules, and the rivals' attacks on them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.tree_util import Partial
from torch import nn

import jaxrobust as jr

LOGITS_TOLERANCE = 1e-4
"""Largest difference of two logits that still counts as the same network."""


def torch_mlp(params: Mapping[str, Any], image_shape: tuple[int, int, int]) -> nn.Sequential:
    """`models.mlp` in PyTorch.

    Args:
        params: Flax parameters, `Dense_0`, `Dense_1`, ...
        image_shape: `(height, width, channels)`; the module takes NCHW.
    """
    kernels = [np.asarray(params[f"Dense_{i}"]["kernel"]) for i in range(len(params))]
    biases = [np.asarray(params[f"Dense_{i}"]["bias"]) for i in range(len(params))]
    kernels[0] = _rows_to_channels_first(kernels[0], image_shape)
    affine = [_linear(*pair) for pair in zip(kernels, biases, strict=True)]
    hidden = [module for layer in affine[:-1] for module in (layer, nn.ReLU())]
    return _frozen(nn.Flatten(), *hidden, affine[-1])


def torch_madry_cnn(params: Mapping[str, Any]) -> nn.Sequential:
    """`models.madry_cnn` on 28x28 images in PyTorch; the module takes NCHW.

    Args:
        params: Flax parameters, `Conv_0`, `Conv_1`, `Dense_0`, `Dense_1`.
    """
    first, second = params["Dense_0"], params["Dense_1"]
    first_kernel = _rows_to_channels_first(np.asarray(first["kernel"]), (7, 7, 64))
    return _frozen(
        _convolution(params["Conv_0"]), nn.ReLU(), nn.MaxPool2d(2),
        _convolution(params["Conv_1"]), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        _linear(first_kernel, np.asarray(first["bias"])), nn.ReLU(),
        _linear(np.asarray(second["kernel"]), np.asarray(second["bias"])),
    )  # fmt: skip


def to_torch(x: Any) -> torch.Tensor:
    """NHWC images as an NCHW tensor."""
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def from_torch(x: torch.Tensor) -> np.ndarray:
    """An NCHW tensor as NHWC images."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def logits_gap(logits_fn: Callable[[Any], Any], module: nn.Module, x: Any) -> float:
    """Largest difference between the two networks' logits on NHWC images x.

    Raises:
        ValueError: If it exceeds `LOGITS_TOLERANCE`: they are not the same network.
    """
    with torch.no_grad():
        theirs = module(to_torch(x)).numpy()
    gap = float(np.max(np.abs(np.asarray(logits_fn(x)) - theirs)))
    if not gap <= LOGITS_TOLERANCE:
        raise ValueError(f"the PyTorch module must have the same logits; they differ by {gap:g}")
    return gap


def use_fastest_threads(module: nn.Module, images: torch.Tensor) -> int:
    """Give PyTorch the number of threads, one or a core each, at which its gradient is faster.

    Its OpenMP threads wait for each other actively: where cores are shared with other work, two
    can be many times slower than one, and a comparison with that would be worth nothing.

    Args:
        module: The network.
        images: A batch for it.

    Returns:
        The number chosen, which is set from now on.
    """

    def gradient_seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            leaf = images.clone().requires_grad_(True)
            torch.autograd.grad(module(leaf).sum(), leaf)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    best = min((1, os.cpu_count() or 1), key=gradient_seconds)
    torch.set_num_threads(best)
    return best


def madry_network(checkpoints: Path | None, which: str, seed: int) -> tuple[Any, Partial]:
    """Parameters and `logits_fn` of the MNIST network.

    Args:
        checkpoints: Folder with the runs `natural` and `adversarial` of `experiments.madry_mnist`;
            fresh weights where None.
        which: Name of the run.
        seed: Of fresh weights.
    """
    model = jr.models.madry_cnn()
    if checkpoints is None:
        params = model.init(jax.random.key(seed), jnp.zeros((1, 28, 28, 1)))["params"]
    else:
        params, _ = jr.train.restore(checkpoints / which)
        # Through NumPy: a restored array is tied to the device it was saved from.
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), params)
    return params, Partial(model.apply, {"params": params})


def _rows_to_channels_first(kernel: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Reorder the rows of a kernel that reads a flattened (h, w, c) image to (c, h, w)."""
    return kernel.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


def _linear(kernel: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(*kernel.shape)
    _fill(layer, kernel.T, bias)
    return layer


def _convolution(params: Mapping[str, Any]) -> nn.Conv2d:
    kernel = np.asarray(params["kernel"])  # HWIO; SAME with odd sides is symmetric padding
    height, width, inputs, outputs = kernel.shape
    layer = nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2))
    _fill(layer, kernel.transpose(3, 2, 0, 1), np.asarray(params["bias"]))
    return layer


def _fill(layer: nn.Linear | nn.Conv2d, weight: np.ndarray, bias: np.ndarray) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def _frozen(*modules: nn.Module) -> nn.Sequential:
    """For inference: an attack needs the gradient of the image only."""
    return nn.Sequential(*modules).eval().requires_grad_(False)
