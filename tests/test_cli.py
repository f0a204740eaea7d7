"""The `ofa` command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ofa_plugin import cli
from ofa_plugin.commands import VERBS, doctor, make_shapes
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.world import files
from ofa_plugin.data.world.language import Question
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


def test_train_bpe_learns_what_the_tasks_ask(tmp_path):
    rows = tmp_path / "rows.tsv"
    rows.write_text("a dog\n" * 20)
    lengths = []
    for flags in ((), ("--text-tasks",)):
        out = tmp_path / f"bpe{len(flags)}"
        assert cli.main(["train-bpe", str(out), str(rows), "--columns", "0", "--vocab-size", "420", *flags]) == 0
        codec = Codec.build("sentencepiece", str(out), 10, 8)
        lengths.append(
            [len(codec.encode(text)) for text in (" what does the image describe?", " grammatically correct?")]
        )
    (image, text), (image_of_texts, text_of_texts) = lengths
    assert image < image_of_texts and text_of_texts < text


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


SMALL = ("--seed", "3", "--rows", "24", "--held-out", "12", "--side", "48", "--code-image-size", "32", "--workers", "1")


def test_make_shapes_writes_a_world_and_says_what_needs_no_look(tmp_path, capsys):
    out = tmp_path / "world"
    assert cli.main(["make-shapes", str(out), *SMALL]) == 0
    shown, progress = capsys.readouterr()
    head, *table, last = shown.splitlines()
    assert head.split()[-4:] == ["test", "unseen_pairs", "unseen_backgrounds", "limit"]
    limits = [line.split()[-2:] for line in table if "answer  " in line or "box" in line or "caption" in line]
    assert limits == [["35.0", "%"], ["10.0", "%"], ["CIDEr", "1.00"]]
    assert last == f"24 rows to train on in {out}: --task unify_task {out}"
    facts = json.loads((out / "world.json").read_text())
    assert facts["finished"] is True and facts["too_easy"] == [] and facts["arguments"]["seed"] == 3
    assert facts["rows"]["train/vision_language_examples.tsv"] == 24
    answers = {}
    for split in ("train", "unseen_pairs"):
        rows = (out / "vqa_gen" / f"{split}.tsv").read_text().splitlines()
        answers[split] = [row.split("\t")[3].removeprefix("1.0|!+") for row in rows]
    usual = max(answers["train"], key=answers["train"].count)
    score = answers["unseen_pairs"].count(usual) / 12
    assert facts["without_looking"]["unseen_pairs"]["majority answer"] == score > 0
    assert f"{100 * score:.1f} %" in table[0]
    total = 24 + 3 * 8 + 4 * (12 + 3 * 8)
    assert f"{total}/{total}" in progress and "row/s" in progress


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rows=2"], "--rows 2: give a number from 3"),
        (["--held-out=0"], "--held-out 0: give a number from 3"),
        (["--seed=-1"], "--seed -1: give a number from 0"),
        (["--side=20"], "--side 20: give a number from 48"),
        (["--code-image-size=60"], "--code-image-size 60: give a multiple of 8"),
        (["--workers=0"], "--workers 0: give a number from 1"),
        (["--shapes=0-2"], "--shapes 0-2: give the fewest and the most, from 1 to 6, such as 2-6"),
        (["--shapes=5-3"], "--shapes 5-3: give"),
        (["--shapes=many"], "--shapes many: give"),
        (["--proportion=1:2"], "--proportion 1:2: give three numbers from 1 to 100, such as 1:3:2"),
        (["--proportion=1:0:2"], "--proportion 1:0:2: give"),
    ],
)
def test_make_shapes_names_the_flag_that_is_wrong(tmp_path, capsys, flags, words):
    assert cli.main(["make-shapes", str(tmp_path / "out"), *SMALL, *flags]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {words}") and not (tmp_path / "out").exists()


def test_make_shapes_leaves_a_folder_of_the_users_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("text")
    assert cli.main(["make-shapes", str(tmp_path), *SMALL]) == 1
    assert f"{tmp_path}: not empty and not made by `ofa make-shapes`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _one_answer(monkeypatch):
    monkeypatch.setattr(files, "ask", lambda scene, draw, about: Question("is it there?", "yes", "yes/no"))


def _one_box(monkeypatch):
    monkeypatch.setattr(files, "_numbers", lambda shape: "10.0,10.0,30.0,30.0")


def _few_captions(monkeypatch):
    told = ("one red circle up high", "two blue stars over there", "many green crosses")
    monkeypatch.setattr(files, "captions", lambda scene: [told[len(scene.shapes) % 3]])


@pytest.mark.parametrize(
    ("doctor_it", "words"),
    [
        (_one_answer, "majority answer 100.0 % > 35.0 %"),
        (_one_box, "constant box 100.0 % > 10.0 %"),
        (_few_captions, "frequent caption CIDEr 2.50 > CIDEr 1.00"),
    ],
)
def test_make_shapes_fails_where_not_looking_is_enough(tmp_path, capsys, monkeypatch, doctor_it, words):
    monkeypatch.setattr(make_shapes, "GATED_FROM", 24)
    doctor_it(monkeypatch)
    assert cli.main(["make-shapes", str(tmp_path / "out"), *SMALL]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "too easy" in error and words in error
    assert json.loads((tmp_path / "out" / "world.json").read_text())["too_easy"]
    monkeypatch.setattr(make_shapes, "GATED_FROM", 25)  # fewer rows say too little
    assert cli.main(["make-shapes", str(tmp_path / "out"), *SMALL]) == 0
    capsys.readouterr()
    monkeypatch.setattr(make_shapes, "GATED_FROM", 24)  # and a world meant to be easy may be
    assert cli.main(["make-shapes", str(tmp_path / "out"), *SMALL, "--shapes", "1-2"]) == 0


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
