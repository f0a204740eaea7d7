"""What the documents tell a user to type works as it stands, on a small world."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ofa_plugin import cli
from ofa_plugin.models.ofa.config import ARCHITECTURES
from tests.helpers.stock import ROOT


def blocks(page: str) -> list[str]:
    """The bash blocks of a page."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def typed(block: str, folder: Path, **shorter: str) -> subprocess.CompletedProcess:
    """Runs a block as a user would, with `shorter` in the place of what takes long, on a CPU.

    Args:
        block: from a page.
        folder: the working directory.
        shorter: with `_` for the spaces and dashes that a flag has: `vocab_size="320"`, `max_epoch="1"`.
    """
    for flag, value in shorter.items():
        block, times = re.subn(rf"--{flag.replace('_', '-')} \S+", f"--{flag.replace('_', '-')} {value}", block)
        assert times, f"no --{flag} in the block"
    block = re.sub(r"^(fairseq-\w+ )", r"\1--cpu ", block, flags=re.MULTILINE)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)  # this checkout's plug-in, whichever is installed
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    return finished


def test_the_commands_of_the_readme_train_and_caption(world, tmp_path):
    [block] = [block for block in blocks("README.md") if "fairseq-train" in block]
    (tmp_path / "data").symlink_to(world.root / "caption")
    typed(block, tmp_path, vocab_size="320", max_epoch="1")
    assert (tmp_path / "results" / "test_predict.json").exists()
    assert "cider = " in (tmp_path / "results" / "generate-test.txt").read_text()


def test_the_commands_of_the_training_page(world, tmp_path):
    [block] = blocks("docs/training.md")
    (tmp_path / "data").symlink_to(world.root / "caption")
    (tmp_path / "my-bpe").symlink_to(world.root / "bpe")
    typed(block, tmp_path, max_epoch="1")


@pytest.mark.slow  # four commands, each of which starts Python anew
def test_the_commands_of_the_page_on_tuning(world, captioner, tmp_path):
    [block] = blocks("docs/tuning.md")
    (tmp_path / "data").symlink_to(world.root / "caption")
    (tmp_path / "my-bpe").symlink_to(world.root / "bpe")
    (tmp_path / "base.pt").symlink_to(captioner)
    # the vocabulary of the small world
    typed(block.replace("--arch", "--num-bins 10 --code-dict-size 8 --arch"), tmp_path, batch_size="16")
    assert (tmp_path / "results" / "test_predict.json").exists()


@pytest.mark.slow  # two commands on one core, half a minute
def test_the_commands_of_the_page_on_rewards(world, captioner, tmp_path):
    (tmp_path / "data").symlink_to(world.root / "caption")
    (tmp_path / "my-bpe").symlink_to(world.root / "bpe")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint_best.pt").symlink_to(captioner)
    [block] = blocks("docs/rewards.md")
    sizes = "--bpe sentencepiece --num-bins 10 --code-dict-size 8"  # of the checkpoint that stands for the first stage
    typed(block.replace("--bpe sentencepiece", sizes), tmp_path, max_epoch="1")
    assert (tmp_path / "rewarded" / "checkpoint_best.pt").exists()


def test_the_commands_of_the_page_on_hydra_train_and_caption(world, tmp_path):
    (tmp_path / "run_scripts").symlink_to(ROOT / "run_scripts")
    (tmp_path / "data").symlink_to(world.root / "caption")
    (tmp_path / "my-bpe").symlink_to(world.root / "bpe")
    recipe, changed = blocks("docs/hydra.md")
    for block in (recipe, changed):
        assert "task.bpe_dir=my-bpe" in block
        block = block.replace("task.bpe_dir=my-bpe", "task.bpe_dir=my-bpe optimization.max_update=2")
        typed(block, tmp_path)
    assert "cider = " in (tmp_path / "results" / "generate-test.txt").read_text()
    models = [
        torch.load(tmp_path / "checkpoints" / folder / "checkpoint_last.pt", weights_only=True)["cfg"]["model"]
        for folder in ("caption_nano", "other")
    ]
    assert {key: models[0][key] for key in ARCHITECTURES["ofa_nano"]} == ARCHITECTURES["ofa_nano"]
    assert models[0]["dropout"] == 0.1 and models[0]["disable_entangle"] is True
    assert {key for key in models[0] if models[0][key] != models[1][key]} == {"encoder_layers", "dropout"}


def test_the_commands_of_the_page_on_generation_answer_what_is_typed(world, captioner, answerer, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 20), (200, 0, 0)).save(tmp_path / "pictures" / "dog.png")
    (tmp_path / "pictures.txt").write_text("pictures/dog.png\n" * 3)
    (tmp_path / "vqa.pt").symlink_to(answerer)
    (tmp_path / "caption.pt").symlink_to(captioner)
    [block] = [block for block in blocks("docs/generation.md") if "fairseq-interactive" in block]
    finished = typed(block, tmp_path)
    assert re.search(r"^S-0\twhat color is it\?$", finished.stdout, re.M) and "\nD-0\t" in finished.stdout
    captions = (tmp_path / "captions.txt").read_text()
    assert len(re.findall(r"^S-\d\twhat does the image describe\?$", captions, re.M)) == 3
    assert set(re.findall(r"^(\w)-", captions, re.M)) == set("SWHDP") and captions.startswith("S-0")  # no log in it
    assert "DEBUG" not in finished.stderr


def test_the_command_of_the_page_on_data_makes_the_table_shown_there(tmp_path):
    [block] = [block for block in blocks("docs/data.md") if "make-shapes" in block]
    finished = typed(block, tmp_path, rows="24")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    head, *table, last = finished.stdout.splitlines()
    assert head in page and len(table) == 5 and last.endswith("--task unify_task shapes")
    assert all(line[:40] in page for line in table)
    named = re.findall(r"`([\w/]+\.(?:tsv|txt|json))`", page.partition("## A world of shapes")[2])
    files = {path.name for path in (tmp_path / "shapes").rglob("*.*")}
    assert len(named) == 10 and {name.rpartition("/")[2] for name in named} <= files


def test_the_commands_of_the_page_on_pretraining_train_evaluate_and_ask(tmp_path):
    train, ask = (block.replace("run_scripts/", f"{ROOT}/run_scripts/") for block in blocks("docs/pretraining.md"))
    train = train.replace("--resnet-model-path resnet.pt", "--resnet-model-path resnet.pt --max-update 2")
    typed(train, tmp_path, rows="64", vocab_size="420", batches="2")
    scores = json.loads((tmp_path / "results" / "pretrain_nano" / "valid_scores.json").read_text())
    assert {"cider", "vqa_score", "detection_ap50"} <= set(scores)
    finished = typed(ask, tmp_path)
    assert "asked_score = " in finished.stdout + finished.stderr


def test_every_page_that_is_linked_exists_and_every_file_that_is_named():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_real_data_of_the_page_on_generation(shared, tmp_path):
    """The commands of the page on the first rows of each file."""
    statements, cells = (
        [block for block in blocks("docs/generation.md") if mark in block] for mark in ("nlvr-model", "bccd-model")
    )
    for folder, source in (("nlvr", "data/nlvr"), ("bccd", "data/bccd/grounding")):
        (tmp_path / folder).mkdir()
        for file in shared(source).glob("*.tsv"):
            with (
                file.open(encoding="utf-8") as rows,
                (tmp_path / folder / file.name).open("w", encoding="utf-8") as some,
            ):
                some.writelines(itertools.islice(rows, 24))
    typed(statements[0], tmp_path, vocab_size="320", max_update="2")
    entries = json.loads((tmp_path / "nlvr-answers" / "valid_predict.json").read_text())
    assert len(entries) == 24 and {entry["answer"] for entry in entries} <= {"yes", "no", "no answer"}
    assert all({one["answer"] for one in entry["ranking"]} == {"yes", "no"} for entry in entries)
    typed(cells[0], tmp_path, max_update="2")
    entries = json.loads((tmp_path / "bccd-boxes" / "test_predict.json").read_text())
    assert len(entries) == 24
    for entry in entries:
        assert len(entry["ranking"]) == 3
        for x0, y0, x1, y1 in (one["box"] for one in entry["ranking"]):
            assert x0 < x1 and y0 < y1


def test_the_task_of_the_page_on_tasks_trains_and_answers(world, tmp_path):
    page = (ROOT / "docs" / "add-a-task.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"```python (\S+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "places").mkdir()
    for split in ("train", "valid", "test"):
        rows = [line.split("\t") for line in (world.root / "caption" / f"{split}.tsv").read_text().splitlines()]
        places = ("indoors", "outdoors")
        written = ["\t".join((row[0], row[4], places[number % 2])) for number, row in enumerate(rows)]
        (tmp_path / "places" / f"{split}.tsv").write_text("\n".join(written) + "\n")
    [block] = blocks("docs/add-a-task.md")
    typed(block, tmp_path, vocab_size="320", max_epoch="1")
    entries = json.loads((tmp_path / "places-answers" / "test_predict.json").read_text())
    assert len(entries) == 14 and {entry["answer"] for entry in entries} <= {"indoors", "outdoors"}
    assert set(json.loads((tmp_path / "places-answers" / "test_scores.json").read_text())) >= {"acc", "rows"}


def test_the_page_of_tasks_is_what_the_command_prints(capsys):
    assert cli.main(["tasks"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| ") > 20 and printed in (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert cli.main(["tasks", "--size", "nano"]) == 0
    assert "\n| pretrain | 32 |" in capsys.readouterr().out
