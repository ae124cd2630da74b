"""The command line as its user meets it: in a process of its own."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from contracts import problem
from quick import COMMAND

from jaxrobust.cli import main
from jaxrobust.cli._bounds import EVERY_NORM, certificates
from jaxrobust.models import small_cnn
from jaxrobust.threat import Ball

MODELS = """
import jax.numpy as jnp

def logits(x):
    flat = x.reshape(x.shape[0], -1)
    return jnp.stack([flat[:, i::10].sum(-1) for i in range(10)], -1)

def good():
    return logits

def scaled():
    return logits, lambda x: x * 2 - 1

def wrong():
    return 3

def needy(weights):
    return logits

def narrow():
    return lambda x: x.reshape(-1, 5) @ jnp.ones((5, 10))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with models, for commands that run in this process."""
    (tmp_path / "mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def jaxrobust(*args, cwd):
    environment = os.environ | COMMAND
    return subprocess.run(
        [sys.executable, "-m", "jaxrobust.cli", *map(str, args)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = jaxrobust("train", "--out", "run", "--num-epochs", 3, "--num-steps", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trained")  # no bars where nobody looks
    return folder


def test_demo_twice_gives_the_same_numbers(tmp_path):
    short = ("demo", "--num-epochs", 1, "--num-examples", 6)
    for out in ("one", "two"):
        done = jaxrobust(*short, "--out", out, "--seed", 3, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "pgd-40 x5" in done.stdout
        page = (tmp_path / out / "index.html").read_text()
        assert "<svg" in page
        assert "data:image/png;base64," in page
    one, two = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "two"))
    assert numbers(one) == numbers(two)
    assert len(one["entries"]) == 2
    with np.load(tmp_path / "one/examples.npz") as a, np.load(tmp_path / "two/examples.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert not list((tmp_path / "one").glob("unfinished-*"))


def numbers(node):
    """A report without what may differ between two runs: times, date, command."""
    if isinstance(node, dict):
        skipped = ("seconds", "created", "command", "arrays", "sha256")
        return {k: numbers(v) for k, v in node.items() if k not in skipped}
    return [numbers(v) for v in node] if isinstance(node, list) else node


def test_train_resume_evaluate_report(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    train = ("train", "--out", "run", "--num-epochs", "3", "--num-steps", "2")
    assert main(train) == 2
    assert "already holds a run" in capsys.readouterr().err
    resumed = jaxrobust(*train, "--resume", cwd=trained)
    assert resumed.returncode == 0, resumed.stderr
    done = jaxrobust(
        "evaluate", "--checkpoint", "run", "--num-examples", 30, "--num-steps", 3,
        "--num-restarts", 2, "--out", "page", cwd=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(f"certified by {name}" in done.stdout for name in ("sdp", "lp", "interval"))
    page = trained / "page" / "index.html"
    first = page.read_bytes()
    page.unlink()
    assert main((*train, "--resume", "--learning-rate", "0.1")) == 2
    assert "learning_rate" in capsys.readouterr().err
    again = jaxrobust("report", "page", cwd=trained)
    assert again.returncode == 0, again.stderr
    assert page.read_bytes() == first


@pytest.mark.parametrize("function", ["good", "scaled"])
def test_evaluate_the_users_own_model(here, function):
    arguments = (
        "evaluate", "--model", f"mine:{function}", "--num-examples", "20", "--num-steps", "2",
        "--num-restarts", "1", "--norm", "l2", "--out", "page",
    )  # fmt: skip
    if function == "good":  # in a process of its own
        done = jaxrobust(*arguments, cwd=here)
        assert done.returncode == 0, done.stderr
    else:
        assert main(arguments) == 0
    stored = json.loads((here / "page/report.json").read_text())
    assert stored["entries"][0]["name"] == f"mine:{function}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("demo", "--data", "mnistt"), "no TFDS data set"),
        (("demo", "--eps-linf", "-1"), "eps must be"),
        (("evaluate",), "either --model or --checkpoint"),
        (("evaluate", "--model", "mine"), "package.module:function"),
        (("evaluate", "--model", "mine:absent"), "absent"),
        (("evaluate", "--model", "nowhere:f"), "nowhere"),
        (("evaluate", "--model", "mine:wrong"), "must return logits_fn"),
        (("evaluate", "--model", "mine:good", "--split", "nope"), "split"),
        (("evaluate", "--checkpoint", "nowhere"), "jaxrobust train"),
        (("report", "nowhere"), "nowhere"),
        (("evaluate", "--model", "mine:needy"), "raised TypeError"),
        (("evaluate", "--model", "mine:narrow"), "cannot take images"),
        (("evaluate", "--model", "mine:good", "--num-examples", "-3"), "--num-examples"),
        (("demo", "--num-epochs", "0"), "num_epochs"),
        (("demo", "--out", "mine.py"), "--out must be a folder"),
        (("train", "--out", "mine.py"), "--out must be a folder"),
        (("evaluate", "--model", "mine:narrow", "--out", "x"), "as digits has"),
        (("train", "--out", "x", "--batch-size", "9999"), "batch_size"),
    ],
)
@pytest.mark.usefixtures("here")
def test_mistakes_are_one_line_and_exit_code_two(capsys, args, message):
    assert main(args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("jaxrobust: ")
    assert message in lines[0]


def test_mistakes_end_the_process_so_too(tmp_path):
    done = jaxrobust("evaluate", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("jaxrobust: ")
    assert "Traceback" not in done.stderr
    assert jaxrobust("demo", "--nonsense", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("command", [(), *zip(["demo", "train", "evaluate", "certify", "report"])])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--help" in shown
    assert "demo" in shown or command


def test_a_report_has_the_tightest_certificates_it_can_afford():
    _, layers, x, y = problem(0, batch=60)
    bounds = certificates(layers, "linf")
    assert set(bounds) == {"sdp", "lp", *EVERY_NORM}
    found = {
        name: bound(x, y, key=None, ball=Ball("linf", 0.02)).certified
        for name, bound in bounds.items()
    }
    assert (found["lp"] >= found["interval"]).all()
    assert (found["sdp"] | found["lp"]).sum() > (found["interval"] | found["spectral"]).sum()
    _, deep, _, _ = problem(0, sizes=(6, 5, 5, 3))
    assert set(certificates(deep, "linf")) == {"lp", *EVERY_NORM}
    module = small_cnn()
    variables = module.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    assert set(certificates(module.layers(variables), "linf")) == set(EVERY_NORM)
    assert set(certificates(layers, "l2")) == set(EVERY_NORM)
    assert certificates(None, "linf") == {}
