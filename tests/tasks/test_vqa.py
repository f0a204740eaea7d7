"""Question answering rows against the official dataset's, and what a closed answer set does to targets."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.example import collate
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.models.generation.trie import Trie
from ofa_plugin.tasks.answering import AnswerSet
from ofa_plugin.tasks.vqa import VQABuilder
from tests.helpers.golden import golden, settings, synthetic_image


def only(tmp_path, codec, row, answers, training=True, **given):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    store = TSVStore(str(tmp_path / "rows.tsv"), VQABuilder.columns, None, VQABuilder.required)
    trie = Trie.from_answers([codec.encode(f" {answer}").tolist() for answer in answers], bos=codec.bos, eos=codec.eos)
    pictures = PictureLoader(tmp_path, 32)
    cfg = settings(
        **{"prompt_type": "none", "add_object": False, "multiple_choice": False, "max_object_length": 30, **given}
    )
    made = VQABuilder(store, codec, cfg, training, pictures, AnswerSet(frozenset(answers), trie, "answers.txt"))
    [example] = made.examples(0, store[0], np.random.default_rng(0))
    return example


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)


CASES = golden("dataset_vqa_gen.json")


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", CASES["cases"], ids=lambda case: f"{case['prompt_type']}-{case['add_object']}-{case['row'][0]}"
)
def test_rows_match_the_official_dataset(shared, tmp_path, case):
    codec = Codec.build("gpt2", str(shared("bpe/gpt2")), 1000, 8192)
    row = [case["row"][0], synthetic_image(40, 30), *case["row"][2:]]
    example = only(
        *(tmp_path, codec, row, CASES["answers_in_trie"]),
        max_src_length=CASES["max_src_length_words"],
        prompt_type=case["prompt_type"],
        add_object=case["add_object"],
        max_object_length=CASES["max_object_length"],
    )
    check_answered(codec, example, case["example"])
    assert example.confidence == pytest.approx(case["example"]["conf"][0])


def check_answered(codec, example, expected):
    """An example and its batch of one against the official item and its decoder prompt."""
    batch = collate([example], codec.bos, codec.pad)
    assert example.uniq_id == expected["id"]
    assert example.source.tolist() == expected["source"]
    assert batch["target"].tolist() == [expected["target"]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [expected["prev_output_tokens"]]
    assert [codec.bos, *batch["prefix_tokens"][0].tolist()] == expected["decoder_prompt"]
    assert example.reference == expected["ref_dict"]
    allowed = batch["allowed_tokens"].split(batch["allowed_counts"][0].tolist())
    assert [sorted(ids.tolist()) for ids in allowed] == expected["constraint_mask_allowed"]


def test_rows_with_prompts_of_different_length_make_one_batch(codec, tmp_path):
    """Officially the ragged list of prompts fails on today's numpy."""
    questions = ("what colour", "is it a big red square on the left")
    for prompt_type, cut in (("src", 0), ("prev_output", 1)):
        examples = [
            only(
                tmp_path, codec, ["1", synthetic_image(8, 8), asked, "1.0|!+red", ""], ["red"], prompt_type=prompt_type
            )
            for asked in questions
        ]
        batch = collate(examples, codec.bos, codec.pad)
        for row, example in enumerate(examples):
            prompt = example.source.tolist()[: len(example.source) - cut]
            previous = [token for token in batch["net_input"]["prev_output_tokens"][row].tolist() if token != codec.pad]
            answer = example.target.tolist()
            assert previous == prompt + answer[:-1]
            target = batch["target"][row].tolist()
            assert target[len(prompt) - 1 : len(prompt) - 1 + len(answer)] == answer
            assert sum(token != codec.pad for token in target) == len(answer)
            assert batch["allowed_counts"][row].nonzero().squeeze(1).tolist()[0] == len(prompt) - 1


def test_object_labels_follow_the_question(codec, tmp_path):
    row = ["1", synthetic_image(8, 8), "what colour", "1.0|!+red", "dog&&&& red  ball &&cat"]
    example = only(tmp_path, codec, row, ["red"], add_object=True, max_object_length=2)
    assert codec.decode(example.source) == " what colour? object: dog red  ball"
    row[4] = ""
    assert codec.decode(only(tmp_path, codec, row, ["red"], add_object=True).source) == " what colour?"
    with pytest.raises(UserError, match="--add-object reads a fifth column, but --selected-cols names four"):
        only(tmp_path, codec, row[:4], ["red"], add_object=True)


def test_the_best_answer_inside_the_set_is_learned(codec, tmp_path):
    row = ["1", synthetic_image(8, 8), "what colour", "0.9|!+crimson&&0.6|!+red", ""]
    example = only(tmp_path, codec, row, ["yes", "red"])
    assert codec.decode(example.target).strip() == "red" and example.confidence == 0.6


def test_a_training_row_outside_the_set_is_a_bad_row_and_an_evaluated_one_scores_nothing(codec, tmp_path):
    row = ["1", synthetic_image(8, 8), "what colour", "0.9|!+crimson", ""]
    with pytest.raises(BadRow, match=r"rows.tsv:1: answers: no answer of this row is in answers.txt \(crimson\)"):
        only(tmp_path, codec, row, ["yes", "red"])
    example = only(tmp_path, codec, row, ["yes", "red"], training=False)
    assert example.target.tolist() == [codec.pad] and example.reference == {"crimson": 0.9}


def test_an_answer_column_of_another_form_is_a_bad_row(codec, tmp_path):
    with pytest.raises(BadRow, match=r"rows.tsv:1: answers: "):
        only(tmp_path, codec, ["1", synthetic_image(8, 8), "why", "yes", ""], ["yes"])


def test_questions_about_one_picture_share_it_in_evaluation_only(tmp_path, codec):
    first, second = synthetic_image(40, 30), synthetic_image(30, 40)
    images = [first, first, second, first]
    lines = [f"{n}\t{image}\twhat is it?\t1.0|!+yes\t\n" for n, image in enumerate(images)]
    (tmp_path / "rows.tsv").write_text("".join(lines), encoding="utf-8")
    store = TSVStore(str(tmp_path / "rows.tsv"), VQABuilder.columns, None, VQABuilder.required)
    cfg = settings(prompt_type="none", add_object=False, multiple_choice=False, max_object_length=30)
    decoded = []

    class Counted(PictureLoader):
        def __call__(self, cell):
            decoded.append(cell)
            return super().__call__(cell)

    for training, count in ((False, 2), (True, 4)):
        decoded.clear()
        made = VQABuilder(store, codec, cfg, training, Counted(tmp_path, 32), None)
        examples = [one for n in range(4) for one in made.examples(n, store[n], np.random.default_rng(0))]
        inputs = collate(examples, codec.bos, codec.pad)["net_input"]
        assert len(decoded) == len(inputs["patch_images"]) == count
    assert "image_rows" not in inputs
