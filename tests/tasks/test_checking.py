"""`ofa check`: what it says of field cases, that it says what training says, samples, JSON and the contact sheet."""

from __future__ import annotations

import base64
import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from ofa_plugin import cli
from tests.helpers.cases import CASES, EXPECTED, caption_row, picture, train, vqa_row
from tests.helpers.stock import error_of


def check(capsys, path, task, *flags):
    """(exit code, lines) of `ofa check PATH TASK flags`."""
    code = cli.main(["check", str(path), task, *map(str, flags)])
    printed = capsys.readouterr()
    return code, (printed.out + printed.err).splitlines()


def bad(lines, path):
    """Line number -> what is wrong with it."""
    found = [re.match(rf"{re.escape(str(path))}:(\d+): (.*)", line) for line in lines]
    return {int(one[1]): one[2] for one in found if one}


# ---- field cases -----------------------------------------------------------------------------------------------------


def test_fc01_quotation_marks_are_text(capsys):
    code, lines = check(capsys, CASES / "fc01" / "caption.tsv", "caption")
    assert code == 0 and f"{EXPECTED['fc01']['rows']} rows to train on, 0 bad" in lines[0]


def test_fc04_an_answer_may_hold_commas_and_an_ampersand_but_not_the_mark(capsys):
    path = CASES / "fc04" / "vqa.tsv"
    code, lines = check(capsys, path, "vqa_gen")
    assert code == 1 and bad(lines, path) == {
        3: "answers: expected confidence|!+answer, found '1.0|!+a|!+b': write 1.0|!+yes, several joined by &&"
    }
    assert "  answers: 2 different (black, white 1, m&m's 1)" in lines


def test_fc06_a_header(capsys):
    path = CASES / "fc06" / "caption.tsv"
    code, lines = check(capsys, path, "caption")
    assert code == 1 and list(bad(lines, path)) == [1] and "looks like a header (uniq_id, image_id" in lines[0]
    assert f"{EXPECTED['fc06']['data_rows'] + 1} rows to train on, 1 bad" in lines[1]


def test_fc07_ids_that_occur_twice_are_named(capsys):
    code, lines = check(capsys, CASES / "fc07" / "vqa.tsv", "vqa_gen")
    assert code == 0 and "  ids that occur more than once: 1 (25.0 %; lines 3)" in lines
    assert "  id '5' is that of line 1 and of line 3" in lines  # and 05 is another one


def test_fc11_odd_pictures_are_counted(capsys):
    code, lines = check(capsys, CASES / "fc11" / "caption.tsv", "caption")
    assert code == 0 and "11 rows to train on, 0 bad" in lines[0]
    for what, count in {"16 bits": 1, "transparency": 3, "several frames": 1, "CMYK": 1, "sides of 20 to 1": 1}.items():
        assert any(re.match(rf"  pictures with {what}.*: {count} \(", line) for line in lines)


def test_fc13_width_and_height_where_corners_are_wanted(capsys):
    path = CASES / "fc13" / "refcoco.tsv"
    code, lines = check(capsys, path, "refcoco")
    found = bad(lines, path)
    assert code == 1 and list(found) == [2, 3]
    assert EXPECTED["fc13"]["bad_rows"]["2"] in found[2] and "has no area" in found[3]


def test_fc15_boxes_of_a_picture_of_another_size(capsys):
    path = CASES / "fc15" / "refcoco.tsv"
    code, lines = check(capsys, path, "refcoco")
    found = bad(lines, path)
    assert code == 1 and list(found) == [1, 2, 3]
    assert "139 px outside" in found[1] and "is negative" in found[2] and "wholly outside" in found[3]
    assert "  clamped boxes: 1 (25.0 %; lines 4)" in lines
    assert any("were these made for pictures of another size?" in line for line in lines)


def test_fc18_no_objects_and_commas_in_names(capsys):
    code, lines = check(capsys, CASES / "fc18" / "detection.tsv", "detection")
    assert code == 0 and any("empty detections: 1 (33.3 %; lines 2)" in line for line in lines)
    assert any("wall, painted 1" in line for line in lines)
    assert "  boxes: 5 (3 small, 2 medium, 0 large; limits 32 and 96 pixels squared)" in lines


def test_fc21_answers_outside_the_set(capsys):
    path = CASES / "fc21" / "vqa.tsv"
    code, lines = check(capsys, path, "vqa_gen")
    assert code == 1 and list(bad(lines, path)) == [2] and "no answer of this row is in" in lines[0]
    assert "  rows whose answers are all outside the set: 1 (33.3 %; lines 2)" in lines
    code, lines = check(capsys, path, "vqa_gen", "--as", "other")  # evaluated, they only count as wrong
    assert code == 0 and "  rows whose answers are all outside the set: 1 (33.3 %; lines 2)" in lines


def test_fc25_labels_without_agreement(capsys):
    path = CASES / "fc25" / "snli_ve.tsv"
    code, lines = check(capsys, path, "snli_ve")
    found = bad(lines, path)
    assert code == 1 and list(found) == [2, 5]
    assert "'-' is unknown: write one of contradiction, entailment, neutral" in found[2] and "is empty" in found[5]
    code, lines = check(capsys, path, "snli_ve", "--as", "other")
    assert code == 0 and any(line.startswith("  rows without a reference") and ": 2 (" in line for line in lines)


def test_fc26_numbers_are_shown_and_short_rows_named(capsys):
    code, lines = check(capsys, CASES / "fc26" / "mnli_other_order.tsv", "mnli")
    assert code == 0 and any("labels are numbers: 0 is 'maybe', 1 is 'yes', 2 is 'no'" in line for line in lines)
    path = CASES / "fc26" / "qqp.tsv"
    code, lines = check(capsys, path, "qqp")
    assert code == 1 and list(bad(lines, path)) == EXPECTED["fc26"]["qqp_bad_rows"]


# ---- the same words as training --------------------------------------------------------------------------------------


def test_training_says_the_same_of_a_row(world, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train.tsv"
    path.write_text("".join([vqa_row(1), vqa_row(2), vqa_row(3, "0.5|!+yes&&no"), vqa_row(4), vqa_row(5)]))
    code, lines = check(capsys, path, "vqa_gen")
    finished = train(world, tmp_path / "data", tmp_path / "save", task="vqa")
    assert code == 1 and lines[0] in error_of(finished)


# ---- pictures --------------------------------------------------------------------------------------------------------


def cut_short():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return base64.b64encode(file.getvalue()[:-900]).decode()


def test_a_picture_that_is_cut_short_is_found_where_it_is_decoded(tmp_path, capsys):
    path = tmp_path / "train.tsv"
    path.write_text("".join([caption_row(1), caption_row(2, image=cut_short()), caption_row(3)]))
    code, lines = check(capsys, path, "caption", "--decode", "0")
    assert code == 0 and "0 of them decoded" in lines[1]
    code, lines = check(capsys, path, "caption", "--decode", "all")
    assert code == 1 and list(bad(lines, path)) == [2] and "damaged picture" in lines[0]


def test_both_alphabets_of_base64_paths_and_what_is_neither(tmp_path, capsys):
    path = tmp_path / "train.tsv"
    data = base64.b64decode(picture())
    (tmp_path / "a.png").write_bytes(data)
    cells = [base64.urlsafe_b64encode(data).decode(), base64.b64encode(data).decode(), "a.png", "b.png", "??", ""]
    path.write_text("".join(caption_row(number, image=cell) for number, cell in enumerate(cells, 1)))
    code, lines = check(capsys, path, "caption")
    assert code == 1 and list(bad(lines, path)) == [4, 5, 6]


def test_crlf_and_a_bom_are_no_fault(tmp_path, capsys):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + (caption_row(1) + caption_row(2)).replace("\n", "\r\n").encode())
    assert check(capsys, path, "caption")[0] == 0


def test_the_sheet_shows_rows_with_their_boxes(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    code, lines = check(capsys, CASES / "fc13" / "refcoco.tsv", "refcoco", "--sheet", sheet)
    drawn = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    assert lines[-1] == f"{sheet}: a sample of the rows"
    assert (np.abs(drawn - (190, 0, 120)).max(-1) < 8).sum() > 100  # the box of the first row
    assert check(capsys, CASES / "fc26" / "qqp.tsv", "qqp", "--sheet", sheet) == (
        1,
        ["error: --sheet: the rows of qqp have no pictures: leave it out"],
    )


# ---- pretraining -----------------------------------------------------------------------------------------------------


def test_the_four_files_of_every_subset(shapes, capsys):
    code, lines = check(capsys, shapes.root, "unify_task", "--code-image-size", 32)
    assert code == 0 and sum(" rows to train on, 0 bad" in line for line in lines) == 4
    assert sum(" rows to evaluate, 0 bad" in line for line in lines) == 4 * len(("valid", "test", "unseen", "unseen"))
    examples = dict(
        pair.split(" ", 1)[::-1] for line in lines if line.startswith("  examples: ") for pair in line[12:].split(", ")
    )
    assert {"caption", "vqa", "matching", "grounding", "region_caption"} | {"text_infilling", "image_infilling"} <= set(
        examples
    )
    assert any(line.startswith("  answers: ") for line in lines) and any(line.startswith("  boxes: ") for line in lines)


def test_rows_of_pretraining_that_cannot_be_used(shapes, tmp_path, capsys):
    train = tmp_path / "train"
    train.mkdir()
    for name, line, change in (
        ("vision_language", 2, lambda cells: [*cells[:7], "qb"]),
        ("image", 1, lambda cells: [*cells[:2], "1 2 3"]),
        ("text", 3, lambda cells: [cells[0], " "]),
        ("detection", 1, lambda cells: [*cells[:2], "1,2,3,red"]),
    ):
        rows = (shapes.root / "train" / f"{name}_examples.tsv").read_text().splitlines()[:4]
        rows[line - 1] = "\t".join(change(rows[line - 1].split("\t")))
        (train / f"{name}_examples.tsv").write_text("".join(f"{row}\n" for row in rows))
    code, lines = check(capsys, tmp_path, "unify_task", "--code-image-size", 32)
    assert code == 1 and sum(" 4 rows to train on, 1 bad" in line for line in lines) == 4
    assert list(bad(lines, train / "text_examples.tsv")) == [3]
    assert "type: 'qb' is unknown: write one of caption, qa" in bad(lines, train / "vision_language_examples.tsv")[2]
    assert "codes: 3 codes, not 16" in bad(lines, train / "image_examples.tsv")[1]
    assert "objects: " in bad(lines, train / "detection_examples.tsv")[1]
    assert f"  no {tmp_path}/negative_sample: matching, which needs false statements, was not looked at" in lines


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_json_holds_what_is_printed(capsys):
    path = CASES / "fc13" / "refcoco.tsv"
    assert cli.main(["check", str(path), "refcoco", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    [file] = found["files"]
    assert found["bad_rows"] == 2 and file["rows"] == 3 and file["boxes"] == {"small": 2, "medium": 1}
    assert [row["line"] for row in file["bad_rows"]] == [2, 3]
    assert file["pictures"]["width"] == {"least": 640, "median": 640, "most": 640}


def test_texts_are_measured_in_tokens_where_a_vocabulary_is_given(world, capsys):
    flags = ("--bpe", "sentencepiece", "--bpe-dir", world.root / "bpe")
    code, lines = check(capsys, world.root / "caption", "caption", *flags)
    assert code == 0 and any(re.match(r"  caption: \d+ to \d+ \(median \d+\) tokens", line) for line in lines)
    assert sum(" rows to evaluate, 0 bad" in line for line in lines) == 4  # valid, test, and both unseen


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "caption"), "nowhere: no such file or folder: give a TSV"),
        ((".", "caption"), "no .tsv in this folder"),
        ((".", "dance"), "no .tsv in this folder"),
        (("empty.tsv", "caption"), "empty.tsv is empty: it needs at least one row"),
        (("a.tsv", "dance"), "TASK dance: unknown to `ofa check`; choose one of caption, cola"),
        (("a.tsv", "unify_task"), "a.tsv: the files of unify_task are called vision_language_examples.tsv, text_exam"),
        (("a.tsv", "caption", "--decode", "some"), "--decode some: give a number of pictures, or all"),
        (("a.tsv", "caption", "--bpe", "gpt2"), "--bpe gpt2: give its folder as --bpe-dir"),
        (("a.tsv", "caption", "--selected-cols", "0,x"), "is not a list of column numbers"),
        (("a.tsv", "caption", "--sheet", "no/where.png"), "--sheet no/where.png: cannot be written"),
        (("a.tsv", "vqa_gen", "--ans2label-file", "nowhere"), "nowhere"),
    ],
)
def test_every_fault_is_one_line(arguments, says, tmp_path, capsys, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub" if arguments[0] == "." else tmp_path)
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "a.tsv").write_text(caption_row(1))
    code, lines = check(capsys, *arguments)
    assert code == 1 and lines[-1].startswith("error: ") and says in lines[-1]


def test_a_thousand_rows_take_less_than_a_second_of_a_core(tmp_path, capsys):
    path = tmp_path / "train.tsv"
    path.write_text("".join(caption_row(number, f"a red circle {number}") for number in range(1500)))
    check(capsys, path, "caption", "--decode", "0")
    begin = time.process_time()
    assert check(capsys, path, "caption", "--decode", "0")[0] == 0
    assert time.process_time() - begin < 1.5
