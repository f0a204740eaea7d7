"""`fairseq-interactive`: typed pictures and questions get the answers that `fairseq-generate` gives."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from tests.helpers.stock import USER_DIR, Finished, error_of, ok, run

TASK = {"caption": "caption", "vqa": "vqa_gen"}


@pytest.fixture(scope="session")
def pictures(world, tmp_path_factory) -> Path:
    """A folder with the pictures of the world's test questions as files, 0.png and on."""
    return extract(world.root / "vqa" / "test.tsv", 5, tmp_path_factory.mktemp("pictures"))


def extract(tsv: Path, column: int, folder: Path) -> Path:
    """Writes the pictures of a TSV to a folder."""
    for number, line in enumerate(tsv.read_text().splitlines()):
        (folder / f"{number}.png").write_bytes(base64.b64decode(line.split("\t")[column]))
    return folder


def interactive(checkpoint: Path, typed: str, folder: Path, *flags: object, task: str = "vqa") -> Finished:
    """Types `typed` in `folder`."""
    return run(
        *("interactive", "--user-dir", USER_DIR, "--task", TASK[task], "--cpu", "--path", checkpoint, *flags),
        stdin=typed,
        cwd=folder,
        log=folder.with_name(f"{folder.name}.log"),
    )


def printed(finished: Finished, letter: str) -> list[str]:
    """What the lines of one letter say in the end, in the order of their numbers, which must be 0 and on."""
    found = re.findall(rf"^{letter}-(\d+)\t(.*)$", ok(finished).output, re.M)
    found.sort(key=lambda item: int(item[0]))
    assert [int(number) for number, _ in found] == list(range(len(found)))
    return [text for _, text in found]


def hypotheses(finished: Finished, letter: str) -> list[tuple[int, str, float]]:
    """(number, text, score) of the H- or D- lines, in the order of their numbers and, within one, as printed."""
    found = re.findall(rf"^{letter}-(\d+)\t(\S+)\t(.*)$", ok(finished).output, re.M)
    return sorted(((int(number), text, float(score)) for number, score, text in found), key=lambda item: item[0])


def generated(world, task: str, checkpoint: Path, log: Path, *flags: object) -> Finished:
    return run(
        *("generate", world.root / task, "--user-dir", USER_DIR, "--task", TASK[task], "--cpu", "--path", checkpoint),
        *("--gen-subset", "test", "--batch-size", 4, "--num-workers", 0, *flags),
        log=log,
    )


def questions(world) -> list[str]:
    return [line.split("\t")[2] for line in (world.root / "vqa" / "test.tsv").read_text().splitlines()]


@pytest.mark.parametrize("buffered", [(), ("--buffer-size", 5, "--batch-size", 3)], ids=["one by one", "batches"])
def test_questions_are_answered_as_in_generation(world, answerer, pictures, tmp_path, buffered):
    asked = questions(world)
    typed = "".join(f"{number}.png\t{question}\n" for number, question in enumerate(asked))
    spoken = interactive(answerer, typed, pictures, *buffered, "--nbest", 5)
    written = generated(world, "vqa", answerer, tmp_path / "log", "--nbest", 5)
    assert printed(spoken, "S") == [text.strip() for text in printed(written, "S")] == asked
    for letter in "HD":
        here, there = hypotheses(spoken, letter), hypotheses(written, letter)
        assert len(here) == 5 * len(asked) and [item[:2] for item in here] == [item[:2] for item in there]
        scores = [item[2] for item in here]
        assert scores == pytest.approx([item[2] for item in there], abs=1e-4)
        assert max(scores[::5]) - min(scores[::5]) > 1e-2  # rows differ by more than what passes for equal
    answers = set((world.root / "vqa" / "answers.txt").read_text().splitlines())
    assert {text.strip() for _, text, _ in hypotheses(spoken, "D")} <= answers
    assert len(re.findall(r"^P-\d+\t-", spoken.output, re.M)) == 5 * len(asked)


def test_the_picture_counts(answerer, pictures):
    """The same question of all pictures: were they exchanged or left out, every score would be the same."""
    typed = "".join(f"{number}.png\twhat color is it?\n" for number in range(14))
    spoken = printed(interactive(answerer, typed, pictures, "--buffer-size", 14, "--batch-size", 14), "H")
    backwards = "".join(reversed(typed.splitlines(keepends=True)))
    reversed_ = printed(interactive(answerer, backwards, pictures, "--buffer-size", 14, "--batch-size", 14), "H")
    assert len({line.split("\t")[0][:7] for line in spoken}) > 3
    for here, there in zip(spoken, reversed(reversed_), strict=True):
        assert float(here.split("\t")[0]) == pytest.approx(float(there.split("\t")[0]), abs=1e-4)


def test_pictures_of_a_file_of_lines_are_captioned_as_in_generation(world, captioner, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    rows = len(list(extract(world.root / "caption" / "test.tsv", 4, folder).iterdir()))
    whole = str(folder / "0.png")  # a whole path among relative ones
    (tmp_path / "lines.txt").write_text("\n".join([whole, *(f"./{n}.png" for n in range(1, rows))]) + "\n")
    flags = ("--input", tmp_path / "lines.txt", "--buffer-size", 100, "--batch-size", 4, "--nbest", 2)
    spoken = interactive(captioner, "", folder, *flags, task="caption")
    written = generated(world, "caption", captioner, tmp_path / "log", "--nbest", 2)
    assert set(printed(spoken, "S")) == {"what does the image describe?"}
    best = [re.findall(r"^D-(\d+)\t\S+\t(.*)$", ok(finished).output, re.M) for finished in (spoken, written)]
    assert len(best[0]) == 2 * rows and sorted(best[0]) == sorted(best[1])


@pytest.mark.parametrize("task", ["vqa_gen", "snli_ve"])
def test_what_a_checkpoint_reads_beside_the_question_is_typed_too(world, pictures, tmp_path, task):
    """Object labels and captions, and a decoder that repeats its source first."""
    _, *flags = world.flags("vqa")
    data, rows = tmp_path / "data.tsv", (world.root / "vqa" / "test.tsv").read_text().splitlines()
    cells = [row.split("\t") for row in rows]
    if task == "vqa_gen":
        more, asked = ("--add-object",), [f"{cell[2]}\tcat&&red sofa" for cell in cells]
        lines = ["\t".join([*cell[:4], "cat&&red sofa", cell[5]]) for cell in cells]
    else:
        flags[flags.index("vqa_gen")] = "snli_ve"
        more, asked = ("--add-caption",), [f"{cell[2]}\ta dog" for cell in cells]
        lines = ["\t".join((cell[0], "", cell[5], cell[2], "a dog", "neutral")) for cell in cells]
        del flags[flags.index("--ans2label-file") :]
    data.write_text("\n".join(lines) + "\n")
    limits = ("--max-update", 1, "--batch-size", 14, "--num-workers", 0, "--lr-scheduler", "fixed")
    prompted = ("--prompt-type", "prev_output", "--disable-validation", "--save-dir", tmp_path)
    ok(run("train", data, *flags, *more, *limits, *prompted, log=tmp_path / "log"))
    of = ("--user-dir", USER_DIR, "--task", task, "--cpu", "--path", tmp_path / "checkpoint_last.pt")
    written = run("generate", data, *of, "--gen-subset", "data", "--batch-size", 4, log=tmp_path / "written")
    typed = "".join(f"{number}.png\t{text}\n" for number, text in enumerate(asked))
    spoken = run(
        *("interactive", *of, "--buffer-size", 14, "--batch-size", 4),
        stdin=typed,
        cwd=pictures,
        log=tmp_path / "spoken",
    )
    assert printed(spoken, "S") == [text.strip() for text in printed(written, "S")]
    assert ("object: cat red sofa" if task == "vqa_gen" else 'text1 " a dog "') in printed(spoken, "S")[0]
    for letter in "HD":
        here, there = hypotheses(spoken, letter), hypotheses(written, letter)
        assert [item[:2] for item in here] == [item[:2] for item in there] and len(here) == 14
        assert [item[2] for item in here] == pytest.approx([item[2] for item in there], abs=1e-4)
    short = run("interactive", *of, stdin="0.png\tis it red?\n", cwd=pictures, log=tmp_path / "short")
    assert "stdin:1: line: 2 parts, not 3: write picture-path<TAB>" in error_of(short)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("0.png\tis it red?\nno.png\tis it red?\n", ("stdin:2: image: no picture 'no.png'", "give its path from ")),
        ("0.png is it red?\n", ("stdin:1: line: 1 part, not 2", "write picture-path<TAB>question")),
        ("0.png\tis it\tred?\n", ("stdin:1: line: 3 parts, not 2", "write picture-path<TAB>question")),
        ("0.png\tis it red?\n\n0.png\tis it red?\n", ("stdin:2: line: blank line", "write picture-path<TAB>question")),
        ("../broken.png\tis it red?\n", ("stdin:1: image: ", "that are no picture", "give one of JPEG")),
        (".\tis it red?\n", ("stdin:1: image: '.' is not a file",)),
        ("http://x.org/a.png\tis it red?\n", ("stdin:1: image: a web address", "download")),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_a_line_that_cannot_be_answered_is_named(answerer, pictures, typed, words, size):
    (pictures.parent / "broken.png").write_text("not a picture")
    finished = interactive(answerer, typed, pictures, "--buffer-size", size)
    message = error_of(finished)
    for word in words:
        assert word in message
    if size == 1:  # what came before has been answered
        assert len(finished.lines("D-")) == int(re.search(r"stdin:(\d+)", message)[1]) - 1


def test_flags_that_cannot_be_are_refused(answerer, pictures, tmp_path):
    missing = error_of(interactive(answerer, "", pictures, "--input", tmp_path / "no.txt"))
    assert f"--input {tmp_path / 'no.txt'}: no such file" in missing
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9.png\tis it red?\n")
    assert "byte 3 is not UTF-8" in error_of(interactive(answerer, "", pictures, "--input", tmp_path / "latin.txt"))
    (tmp_path / "bad.txt").write_text("0.png\n")
    named = error_of(interactive(answerer, "", pictures, "--input", tmp_path / "bad.txt"))
    assert f"{tmp_path / 'bad.txt'}:1: line: 1 part, not 2" in named
    assert "--constraints is not available" in error_of(interactive(answerer, "", pictures, "--constraints"))
