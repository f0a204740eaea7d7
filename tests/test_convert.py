"""`ofa convert`: what comes out, what is refused, and what its child may not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from ofa_plugin import cli
from ofa_plugin.convert import tensors_of
from ofa_plugin.errors import UserError
from tests.helpers.stock import ROOT

safetensors = pytest.importorskip("safetensors.torch", reason="the extra [export] is not installed")


class Runs:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def checkpoint(path, **more):
    shared = torch.arange(6.0).view(2, 3)
    weights = {
        "a.weight": shared,
        "b.weight": shared,
        "c": torch.tensor(3),
        "d": torch.ones(2, 4, dtype=torch.half).t(),
    }
    torch.save({"model": weights, "args": Namespace(arch="ofa_nano", lr=[0.5]), **more}, path)
    return path


def test_weights_and_settings_come_out_as_they_were(tmp_path, capsys):
    source, out = checkpoint(tmp_path / "in.pt", extra_state={"epoch": 3}), tmp_path / "out"
    assert cli.main(["convert", str(source), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "3 tensors, 1 more names for the same, 15 numbers" in printed
    assert "left out, since they are no weights: extra_state" in printed
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    weights = safetensors.load_file(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["tied"] == {"b.weight": "a.weight"} and config["settings"] == {"arch": "ofa_nano", "lr": [0.5]}
    before = torch.load(source, weights_only=False)["model"]
    for name, tensor in before.items():
        assert (
            torch.equal(weights[config["tied"].get(name, name)], tensor)
            and tensor.dtype == weights.get(name, tensor).dtype
        )
    assert cli.main(["convert", str(source), str(out)]) == 1
    assert "model.safetensors: already there; --force replaces it" in capsys.readouterr().err


def test_a_file_that_runs_something_is_refused_and_runs_nothing(tmp_path, capsys):
    source = checkpoint(tmp_path / "in.pt", more=Runs(f"touch {tmp_path}/ran"))
    assert cli.main(["convert", str(source), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "which is code and not data; nothing of it was run" in error
    assert not (tmp_path / "ran").exists() and list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_damaged_file_and_none_are_one_line(tmp_path, capsys):
    (tmp_path / "in.pt").write_bytes(b"no checkpoint")
    for name, says in (("in.pt", "damaged or no checkpoint"), ("nowhere.pt", "no such file: give a checkpoint")):
        assert cli.main(["convert", str(tmp_path / name), str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_without_safetensors_the_error_says_what_to_type(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert cli.main(["convert", "in.pt", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: ofa convert needs safetensors: pip install 'ofa-plugin[export]'\n"


@pytest.mark.parametrize(
    ("state", "says"),
    [({"model": {}}, "holds no weights"), ({"model": {"a": 1}}, "'a' is no tensor"), ({}, "no weights")],
)
def test_what_holds_no_weights_is_refused(state, says):
    with pytest.raises(UserError, match=says):
        tensors_of(state, "in.pt")


@pytest.mark.parametrize(
    "action",
    [
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import ctypes; ctypes.CDLL(None)",
        "open('elsewhere', 'w')",
        "import os; os.open('elsewhere', os.O_WRONLY | os.O_CREAT)",
        "import os; os.remove('kept')",
        "import os; os.rename('kept', 'inside/kept')",
    ],
)
def test_the_child_does_not_survive_what_it_has_no_business_with(action, tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "inside").mkdir()
    allowed = "open('inside/a', 'w').close(); open('kept').close(); import os; os.remove('inside/a')"
    script = (
        f"from pathlib import Path; from ofa_plugin.convert import forbid; forbid(Path('inside')); {allowed}; print(1)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", f"{script}; {action}; print(2)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 77, finished.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "kept"]


def test_the_child_has_a_budget_of_memory_and_of_file_size(tmp_path):
    script = (
        "import signal; from ofa_plugin import convert; convert.BESIDE = 1 << 28; convert.limit(1000)\n"
        "try:\n    bytearray(1 << 30); print('much')\nexcept MemoryError:\n    print('no memory')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n    open('a', 'wb').write(bytes(1 << 25)); print('large')\nexcept OSError:\n    print('too large')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert finished.stdout.split("\n") == ["no memory", "too large", ""], finished.stderr
