"""`jaxrobust certify`: the numbers are the library's, files are whole, mistakes are one line."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from quick import COMMAND
from rich.console import Console

from jaxrobust import certify, data, report
from jaxrobust.cli import main
from jaxrobust.cli._npz import read_layers
from jaxrobust.layers import Conv, Dense, Flatten, Relu, Sigmoid
from jaxrobust.models import mlp, small_cnn

EPS = (0.005, 0.02)
METHODS = ("sdp", "lp", "interval", "spectral", "frobenius")


def jaxrobust(*args, cwd):
    environment = os.environ | COMMAND
    return subprocess.run(
        [sys.executable, "-m", "jaxrobust.cli", "certify", *map(str, args)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def here(capsys, *args):
    """The same without a process of its own: exit code and standard error."""
    try:
        code = main(["certify", *map(str, args)])
    except SystemExit as stopped:
        code = stopped.code
    return code, capsys.readouterr().err


def weights(seed=0, hidden=6, classes=10):
    """A hidden layer at random, and a second one fitted by least squares: right half the time."""
    train = data.load("digits")
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(size=(64, hidden)) / 8, rng.normal(size=hidden) / 8
    features = np.maximum(train.x.reshape(-1, 64) @ kernel + bias, 0)
    last, *_ = np.linalg.lstsq(features, np.eye(10)[train.y], rcond=None)
    last = last[:, :classes]
    return {"0.kernel": kernel, "0.bias": bias, "2.kernel": last, "2.bias": np.zeros(classes)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certify")
    np.savez(folder / "net.npz", **weights())
    done = jaxrobust(*options(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def options():
    return ("--layers", "net.npz", "--num-examples", 60, "--eps", *EPS, "--out", "out")


def test_numbers_are_the_librarys(first):
    folder, shown = first
    found = json.loads((folder / "out/certify.json").read_text())
    layers = read_layers(folder / "net.npz", "relu")
    test = data.load("digits", "test")
    x, y = test.x[:60], test.y[:60]
    constants = certify.load_sdp_constants(folder / "out/sdp_constants.npz", layers)
    packed = (folder / "out/margins.npz").read_bytes()
    assert found["arrays"]["sha256"] == hashlib.sha256(packed).hexdigest()
    assert [(row["method"], row["eps"]) for row in found["bounds"]] == [
        (method, eps) for method in METHODS for eps in EPS
    ]
    best = dict.fromkeys(EPS, -np.inf)
    with np.load(folder / "out/margins.npz") as margins:
        np.testing.assert_array_equal(margins["labels"], y)
        assert len(margins.files) == 1 + len(found["bounds"])
        for row in found["bounds"]:
            options = {"constants": constants} if row["method"] == "sdp" else {}
            bound = getattr(certify, row["method"])(layers, x, y, eps=row["eps"], **options)
            np.testing.assert_allclose(
                margins[f"{row['method']}/{row['eps']}"], bound.margins, rtol=1e-12
            )
            assert row["certified_accuracy"] == bound.certified.mean()
            assert row["proof"] == bound.proof
            assert row["seconds"] >= 0
            best[row["eps"]] = np.maximum(best[row["eps"]], bound.margins)
    assert found["any_method"] == {
        str(eps): np.mean((rows > 0).all(1)) for eps, rows in best.items()
    }
    assert 0 < found["any_method"]["0.005"] <= found["clean_accuracy"] < 1
    assert found["sdp_constants"]["gap"] == constants.gap < 1e-3
    assert not found["sdp_constants"]["reused"]
    assert found["seed"] is None
    assert found["settings"]["layers"] == "net.npz"
    assert "jaxrobust" in found["environment"]
    assert "<svg" in (folder / "out/certified.svg").read_text()
    assert not list((folder / "out").glob(".*"))
    for word in (*METHODS, "any method", "0.005", "0.02", "certify.json"):
        assert word in shown
    assert "\n\n" not in shown  # no bars where nobody looks


def test_a_report_is_not_made_of_certificates(first, capsys):
    folder, _ = first
    assert main(["report", str(folder / "out")]) == 2
    assert "holds certificates of jaxrobust certify" in capsys.readouterr().err


def test_constants_are_used_again_for_this_network_only(first, capsys, monkeypatch):
    folder, _ = first
    monkeypatch.chdir(folder)
    before = json.loads((folder / "out/certify.json").read_text())
    constants = (folder / "out/sdp_constants.npz").read_bytes()
    monkeypatch.setattr(certify, "sdp_constants", None)  # nothing may be solved
    assert here(capsys, *options())[0] == 0
    after = json.loads((folder / "out/certify.json").read_text())
    assert after["sdp_constants"].pop("reused")
    assert constants == (folder / "out/sdp_constants.npz").read_bytes()
    assert plain(before) == plain(after)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    for found in (constants[:1000], b""):  # damaged, then empty
        (folder / "out/sdp_constants.npz").write_bytes(found)
        assert here(capsys, *options(), "--methods", "sdp")[0] == 0
        assert len((folder / "out/sdp_constants.npz").read_bytes()) == len(constants)
    np.savez("net.npz", **weights(seed=1))
    assert here(capsys, *options(), "--methods", "sdp")[0] == 0
    other = json.loads((folder / "out/certify.json").read_text())
    assert not other["sdp_constants"]["reused"]
    assert other["network"]["checksum"] != before["network"]["checksum"]
    np.savez("net.npz", **weights())


def plain(found):
    """Certified accuracies and proofs: what may not differ between two runs."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in found["bounds"]]
    return [rows, found["any_method"], found["clean_accuracy"], found["network"], found["arrays"]]


def test_convolutions_and_sigmoids_have_the_methods_that_apply(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {
        "1.kernel": rng.normal(size=(3, 3, 1, 2)), "1.bias": np.zeros(2), "1.strides": [2, 2],
        "1.padding": "VALID", "5.kernel": rng.normal(size=(18, 10)), "5.bias": np.zeros(10),
    }  # fmt: skip
    np.savez("net.npz", **arrays)
    first, between, flat, last = read_layers(tmp_path / "net.npz", "sigmoid")
    assert isinstance(first, Conv)
    assert isinstance(last, Dense)
    assert (first.strides, first.padding) == ((2, 2), "VALID")
    assert (between, flat) == (Sigmoid(), Flatten())
    common = ("--layers", "net.npz", "--activation", "sigmoid", "--num-examples", 5)
    code = here(capsys, *common, "--eps", 0.0, 0.01, "--out", "out")[0]
    assert code == 0
    found = json.loads((tmp_path / "out/certify.json").read_text())
    assert {row["method"] for row in found["bounds"]} == set(METHODS[2:])
    assert found["sdp_constants"] is None
    assert set(found["not_applicable"]) == {"sdp", "lp"}
    for method, reason in (("sdp", "semidefinite"), ("lp", "Sigmoid")):
        code, error = here(capsys, *common, "--methods", method, "interval")
        assert code == 2
        assert f"--methods {method} does not apply" in error
        assert reason in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(("module", "depth"), [(mlp((5,)), 1), (small_cnn(), 3)])
def test_layers_written_by_their_number_come_back(tmp_path, module, depth):
    variables = module.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    layers = module.layers(variables)
    arrays = {
        f"{i}.{part}": getattr(layer, part)
        for i, layer in enumerate(layers) for part in ("kernel", "bias", "strides")
        if hasattr(layer, part)
    }  # fmt: skip
    np.savez(tmp_path / "net.npz", **arrays)
    read = read_layers(tmp_path / "net.npz", "relu")
    assert [type(layer) for layer in read] == [type(layer) for layer in layers]
    assert sum(layer == Relu() for layer in read if isinstance(layer, Relu)) == depth
    x, y = np.full((2, 8, 8, 1), 0.5, np.float32), np.array([0, 1])
    bounds = [certify.interval(network, x, y, eps=0.01).margins for network in (layers, read)]
    np.testing.assert_array_equal(*bounds)


@pytest.mark.parametrize(
    ("changed", "args", "message"),
    [
        (None, (), "net.npz cannot be read"),
        (b"", (), "damaged"),
        (b"PK\x03\x04 no archive", (), "damaged"),
        (b"0.05, 0.1", (), "net.npz is no npz file"),
        ({"0.kernel": np.zeros((64, 12))}, (), "layer 0: bias must have shape (12,)"),
        ({"0.kernel": np.zeros((6, 64))}, (), "PyTorch's weight.T"),
        ({"0.kernel": np.zeros((65, 6))}, (), "takes examples of shape (65,)"),
        ({"0.kernel": np.zeros((65, 6))}, (), "data: digits"),
        ({"2.kernel": np.zeros((7, 10))}, (), "layer 2: kernel has 7 inputs, but the layer in"),
        ({"2.kernel": np.zeros((10, 6)), "2.bias": np.zeros(6)}, (), "transposed"),
        ({"0.kernel": np.zeros((64, 6), int)}, (), "kernel must hold floating-point numbers; got"),
        ({"0.kernel": np.zeros((64, 6, 1))}, (), "layer 0: kernel must have shape"),
        ({"0.kernel": np.full((64, 6), np.nan)}, (), "layer 0: kernel must hold finite"),
        ({"0.strides": [1, 1]}, (), "without strides"),
        ({"3.kernel": np.zeros((10, 10))}, (), "layer 3: kernel and bias"),
        ({"first": np.zeros(3)}, (), "'first'"),
        (weights(classes=3), (), "labels in 0..2"),
        ({}, ("--methods", "crown"), "crown"),
        ({}, ("--eps", "-0.1"), "--eps must be finite and at least 0"),
        ({}, ("--eps",), "at least one radius"),
        ({}, ("--num-examples", "0"), "--num-examples"),
        ({}, ("--split", "nope"), "split must be"),
        ({}, ("--data", "mnistt"), "no TFDS data set"),
        ({}, ("--checkpoint", "nowhere"), "either --layers or --checkpoint"),
        ({}, ("--out", "net.npz"), "--out must be a folder; net.npz is a file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    tmp_path, monkeypatch, capsys, changed, args, message
):
    monkeypatch.chdir(tmp_path)
    if isinstance(changed, bytes):
        (tmp_path / "net.npz").write_bytes(changed)
    elif changed is not None:
        np.savez("net.npz", **(weights() | changed))
    code, error = here(capsys, "--layers", "net.npz", *args)
    assert code == 2
    assert error.startswith("jaxrobust: ")
    assert error.count("\n") == 1
    assert message in error


def test_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, error = here(capsys, "--checkpoint", "nowhere")
    assert (code, "jaxrobust train" in error) == (2, True)
    assert main(["train", "--out", "run", "--num-epochs", "1", "--objective", "cross_entropy"]) == 0
    common = ("--num-examples", 20, "--eps", 0.01, "--methods", "interval", "lp", "--out", "out")
    assert here(capsys, "--checkpoint", "run", *common)[0] == 0
    found = json.loads((tmp_path / "out/certify.json").read_text())
    assert found["network"]["layers"] == ["Flatten", "Dense (64, 500)", "Relu", "Dense (500, 10)"]
    assert found["data"] == {"name": "digits", "split": "test", "num_examples": 20}
    described = (tmp_path / "run/model.json").read_text()
    (tmp_path / "run/model.json").write_text(described.replace('"mlp"', '"madry_cnn"'))
    code, error = here(capsys, "--checkpoint", "run", *common)
    assert (code, error.count("\n")) == (2, 1)
    assert "pooling" in error


def test_table_and_chart_of_one_set_of_numbers():
    found = report.Certified("linf", 8, 0.5, [0.1], {"lp": [0.25], "sdp": [0.125]}, [0.375])
    console = Console(record=True, width=90)
    report.print_certified(found, console)
    shown = console.export_text()
    assert [cell for cell in shown.splitlines()[2].split() if cell != "%"] == [
        "0.1", "25.0", "12.5", "37.5",
    ]  # fmt: skip
    assert report.certified_figure(found) == report.certified_figure(found)
    close = report.Certified("linf", 8, 0.5, [0.1, 0.1000001], {"lp": [0.25, 0.25]}, [0.25, 0.25])
    report.print_certified(close, console)
    shown = console.export_text()
    assert "0.1000001" in shown
    assert "any method" not in shown  # there is one method
    with pytest.raises(ValueError, match="lp must hold one value"):
        report.Certified("linf", 8, 0.5, [0.1], {"lp": []}, [0.375])


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["certify", "--help"])
    assert "all that apply" in " ".join(capsys.readouterr().out.split())
