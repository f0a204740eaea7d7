"""Where the package is found, what it brings, and what its parts may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

import ofa_plugin
from tests.helpers.stock import ROOT, USER_DIR

FOLDERS = ("criterions", "data", "models", "tasks")
SOURCES = sorted(path for folder in ("ofa_plugin", *FOLDERS) for path in (ROOT / folder).rglob("*.py"))

AS_USER_DIR = """
import argparse, importlib.util, os, sys
from fairseq import utils
import fairseq.models, fairseq.tasks

def case(cwd, user_dir):
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)
    os.chdir(cwd)
    sys.path.insert(0, cwd)  # as python -m does
    utils.import_user_module(argparse.Namespace(user_dir=user_dir))
    module = sys.modules["ofa_plugin"]
    known = "ofa_nano" in fairseq.models.ARCH_MODEL_REGISTRY and "caption" in fairseq.tasks.TASK_REGISTRY
    print("CASE", module.__file__, known, importlib.util.find_spec("models").origin)
    sys.stdout.flush()
    os._exit(0)

for number in range(1, len(sys.argv), 2):
    case(*sys.argv[number : number + 2])
"""


def test_the_user_dir_is_found_from_anywhere_and_takes_no_name_of_the_users(tmp_path):
    """From the root by its name, from / with a closing slash, and beside another folder of the same name."""
    stray = tmp_path / "stray"
    (stray / "ofa_plugin").mkdir(parents=True)
    (stray / "ofa_plugin" / "__init__.py").write_text("raise SystemExit('the stray folder was imported')")
    for name in ("models", "data", "tasks"):
        (stray / f"{name}.py").write_text("")
    cases = [(ROOT, "ofa_plugin"), ("/", USER_DIR + "/"), (stray, USER_DIR)]
    finished = subprocess.run(
        [sys.executable, "-c", AS_USER_DIR, *(str(word) for case in cases for word in case)],
        capture_output=True,
        text=True,
        cwd="/",
    )
    found = [line.split()[1:] for line in finished.stdout.splitlines() if line.startswith("CASE")]
    assert [case[:2] for case in found] == [[f"{USER_DIR}/__init__.py", "True"]] * 3, finished.stderr
    assert found[2][2] == str(stray / "models.py")  # the user's own, not ours
    assert finished.stderr.count("is not used; the plug-in is") == 1
    assert f"{stray / 'ofa_plugin'} is not used" in finished.stderr


def test_importing_the_package_needs_neither_fairseq_nor_torch():
    script = "import sys, ofa_plugin, ofa_plugin.cli; sys.exit(bool({'torch', 'fairseq', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_every_source_file_is_in_the_package(monkeypatch):
    asked = {}
    monkeypatch.setattr(setuptools, "setup", asked.update)
    monkeypatch.chdir(ROOT)
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__name__": "setup"})
    packages = set(asked["packages"])
    for path in SOURCES:
        parts = path.relative_to(ROOT).parent.parts
        assert ".".join(parts if parts[0] == "ofa_plugin" else ("ofa_plugin", *parts)) in packages, path
    assert asked["package_dir"] == {"ofa_plugin": "ofa_plugin", **{f"ofa_plugin.{name}": name for name in FOLDERS}}


def test_the_version_stands_in_one_way_everywhere():
    settings = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', settings, re.MULTILINE)[1] == ofa_plugin.__version__
    assert f"\nversion: {ofa_plugin.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def imports(path: Path) -> set[str]:
    """The folders of ours that a file imports from."""
    here = path.relative_to(ROOT).parent.parts
    package = here if here[0] == "ofa_plugin" else ("ofa_plugin", *here)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            whole = (*base, *(node.module or "").split("."))
            names = [whole] if node.module else [(*base, alias.name) for alias in node.names]
            found |= {name[1] for name in names if len(name) > 1 and name[0] == "ofa_plugin"}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.partition(".")[0] for name in names} & {*FOLDERS, "ofa_plugin"}, (
                f"{path}: relative, please"
            )
    return found & set(FOLDERS)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("data", {"tasks", "models", "criterions"}),
        ("models", {"tasks", "data", "criterions"}),
        ("criterions", {"tasks"}),
    ],
)
def test_the_floors_of_the_house_are_kept(folder, forbidden):
    for path in (ROOT / folder).rglob("*.py"):
        assert not imports(path) & forbidden, path


UNSAFE = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system", "torch.load", "extractall"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_says(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        unsafe = name in UNSAFE or name.rpartition(".")[2] == "extractall"
        if name == "torch.load":
            unsafe = not any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
        assert not unsafe, f"{path}:{node.lineno}: {name}"
