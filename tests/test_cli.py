"""The `ofa` command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ofa_plugin import cli
from ofa_plugin.commands import VERBS, doctor
from tests.helpers.stock import ROOT, USER_DIR, ok, run


def python(script: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True)


def test_user_dir_is_an_absolute_path_and_costs_nothing(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from ofa_plugin.cli import main\n"
        "code = main(['user-dir'])\n"
        "assert not {'torch', 'fairseq', 'numpy'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    finished = python(script, cwd=tmp_path)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"{USER_DIR}\n", "")


@pytest.mark.parametrize("missing", ["torch", "fairseq"])
def test_the_doctor_names_what_to_type_where_a_package_is_missing(missing):
    script = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "from ofa_plugin.cli import main\n"
        "sys.exit(main(['doctor', '--no-train']))"
    )
    finished = python(script)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    failure, fix = [line for line in finished.stdout.splitlines() if line.startswith(("FAIL", "      fix"))][:2]
    assert missing in failure and "pip install torch==2.13.0" in fix
    assert ("READTHEDOCS=1 pip install --no-build-isolation --no-deps fairseq-fixed==0.12.3.1" in fix) == (
        missing == "fairseq"
    )


def test_without_fairseq_the_package_imports_and_register_says_what_to_type():
    script = (
        "import sys\n"
        "sys.modules['fairseq'] = None\n"
        "import ofa_plugin\n"
        "try:\n    ofa_plugin.register()\n"
        "except ofa_plugin.UserError as error:\n    print(error)"
    )
    finished = python(script)
    assert finished.stdout.startswith("ofa_plugin needs fairseq, which this Python has not: type `pip install ")
    assert len(finished.stdout.splitlines()) == 1


def test_another_verb_without_torch_says_so_in_one_line(tmp_path):
    (tmp_path / "a.tsv").write_text("a\n")
    script = (
        "import sys\n"
        "sys.modules['sentencepiece'] = None\n"
        "from ofa_plugin.cli import main\n"
        f"sys.exit(main(['train-bpe', {str(tmp_path / 'out')!r}, {str(tmp_path / 'a.tsv')!r}, '--columns', '0']))"
    )
    finished = python(script)
    assert finished.returncode == 1
    assert finished.stderr == "error: sentencepiece is not installed; `ofa doctor` says what to type\n"


def test_the_doctor_finds_everything_here_and_its_step_trains(tmp_path, monkeypatch):
    findings = list(doctor.examine(train=False))
    assert not [finding for finding in findings if finding.fix], findings
    assert [finding.what for finding in findings][-2:] == ["plug-in", "GPU"]
    command = doctor.make_run(tmp_path)
    assert command[1:3] == ["-m", "fairseq_cli.train"]
    ok(run("train", *command[3:], cwd=tmp_path, log=tmp_path / "log"))
    assert (tmp_path / "save" / "checkpoint_last.pt").is_file()


def test_the_doctor_reports_a_step_that_fails(monkeypatch):
    script = "import sys; print('error: no luck', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(doctor, "make_run", lambda folder: [sys.executable, "-c", script])
    finding = doctor.train_one_step()
    assert "exit code 3, error: no luck" in finding.found and "-c import sys" in finding.fix


@pytest.mark.parametrize(
    ("found", "fails"),
    [("2.13.0+cpu", False), ("2.6.0", False), ("2.5.1", True), ("2.14.0", True), ("2.13.1", False)],
)
def test_versions_are_held_against_the_table(monkeypatch, found, fails):
    monkeypatch.setattr(doctor, "version", lambda name: found)
    finding = doctor.examine_package(doctor.PACKAGES[0])
    assert bool(finding.fix) == fails and found in finding.found
    assert ("tested with 2.13.0" in finding.found) == (not found.startswith("2.13.0"))


def test_bad_findings_make_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "examine", lambda train: [doctor.Finding("sun", "dark", "wait"), doctor.Finding("a", "b")]
    )
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[:3] == ["FAIL  sun: dark", "      fix: wait", "ok    a: b"]


def test_train_bpe_writes_a_bpe_dir(tmp_path, capsys):
    rows = tmp_path / "a.tsv"
    rows.write_text("".join(f"{n}\tthe quick brown fox number {n} jumps\n" for n in range(50)))
    assert cli.main(["train-bpe", str(tmp_path / "bpe"), str(rows), "--columns", "1", "--vocab-size", "320"]) == 0
    assert sorted(path.name for path in (tmp_path / "bpe").iterdir()) == ["dict.txt", "spm.model"]
    assert f"--bpe sentencepiece --bpe-dir {tmp_path / 'bpe'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--columns=x"], "--columns x: give numbers counted from 0"),
        (["--columns=-1"], "--columns -1: columns are counted from 0"),
        (["--columns=0", "--vocab-size=0"], "--vocab-size 0"),
    ],
)
def test_train_bpe_names_the_flag_that_is_wrong(tmp_path, capsys, flags, words):
    rows = tmp_path / "a.tsv"
    rows.write_text("text\n")
    assert cli.main(["train-bpe", str(tmp_path / "bpe"), str(rows), *flags]) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "bpe").exists()


def test_train_bpe_names_a_missing_file(tmp_path, capsys):
    assert cli.main(["train-bpe", str(tmp_path / "bpe"), "/no.tsv", "--columns", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: /no.tsv: no such file")


def test_help_lists_every_verb_and_an_unknown_one_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    with pytest.raises(SystemExit) as left:
        cli.main(["dance"])
    assert left.value.code == 2


def test_the_table_and_the_package_ask_for_the_same(tmp_path):
    text = (ROOT / "pyproject.toml").read_text()
    torch = doctor.PACKAGES[0]
    assert json.dumps(f"torch>={torch.lowest},<{torch.below}") in text
    assert json.dumps(f"fairseq-fixed=={doctor.PACKAGES[1].tested}") in text
