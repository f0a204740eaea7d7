"""What the documents tell a user to type works as it stands, on a small world."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.stock import ROOT


def blocks(page: str) -> list[str]:
    """The bash blocks of a page."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def typed(block: str, folder: Path, **shorter: str) -> None:
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
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]


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


def test_every_page_that_is_linked_exists_and_every_file_that_is_named():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
