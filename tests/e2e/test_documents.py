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


def test_the_commands_of_the_readme_train_and_caption(world, tmp_path):
    [block] = [block for block in blocks("README.md") if "fairseq-train" in block]
    (tmp_path / "data").symlink_to(world.root / "caption")
    block = block.replace("--vocab-size 8000", "--vocab-size 320").replace("--max-epoch 20", "--max-update 2 --cpu")
    block = block.replace("--gen-subset test", "--gen-subset test --cpu")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert (tmp_path / "results" / "test_predict.json").exists()
    assert "cider = " in (tmp_path / "results" / "generate-test.txt").read_text()


def test_every_page_that_is_linked_exists_and_every_file_that_is_named():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
