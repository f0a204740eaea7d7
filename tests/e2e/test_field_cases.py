"""What people ran into in public, each as a few rows with the value that is right (tests/fixtures/field-cases)."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import fairseq  # noqa: F401  before ofa_plugin, which then registers at once
import numpy as np
import pytest
import torch
from fairseq.tasks import FairseqTask

from ofa_plugin.data.answers import read_answers
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.dataset import OFADataset
from ofa_plugin.data.image import ImageReader, PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.models.generation.trie import Trie
from ofa_plugin.tasks.answering import AnswerSet
from ofa_plugin.tasks.base import OFATaskConfig
from ofa_plugin.tasks.caption import CaptionBuilder
from ofa_plugin.tasks.metrics import BLEU, ROUGEL, CIDErD, Tally
from ofa_plugin.tasks.vqa import VQABuilder
from tests.helpers.cases import CASES, EXPECTED, caption_row, edited, entries, generate, left_in, train
from tests.helpers.drawing import DrawingBuilder
from tests.helpers.golden import settings
from tests.helpers.stock import ROOT, USER_DIR, error_of, ok, run

COLUMNS = [0, 4, 2]  # of captioning


def losses(output: str) -> list[str]:
    """The loss of every update of a run."""
    return re.findall(r'train_inner\b.*?"loss": "([\d.]+)"', output)


def hypotheses(results: Path) -> dict[str, tuple[float, str]]:
    """Row number to (score, answer) of what `fairseq-generate` printed."""
    printed = (results / "generate-test.txt").read_text(encoding="utf-8")
    return {row: (float(score), text) for row, score, text in re.findall(r"^D-(\d+)\t(\S+)\t(.*)$", printed, re.M)}


def codec(world) -> Codec:
    return Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)


# ---- data in ---------------------------------------------------------------------------------------------------------


def test_fc01_quotation_marks_are_text(world, tmp_path):
    store = TSVStore(CASES / "fc01" / "caption.tsv", CaptionBuilder.columns, COLUMNS)
    assert [row.caption for row in store] == EXPECTED["fc01"]["captions_verbatim"]
    finished = ok(train(world, CASES / "fc01" / "caption.tsv", tmp_path / "save", "--max-update", 3))
    assert f"train: {EXPECTED['fc01']['rows']} rows" in finished.output
    assert len(losses(finished.output)) == 3


def test_fc01_punctuation_goes_unless_nothing_else_is_left(world):
    store = TSVStore(CASES / "fc01" / "caption.tsv", CaptionBuilder.columns, COLUMNS)
    expected = ["a dog", "a cat", "he said hi twice", "the dogs bone", '"', "a big red bus"]
    for training in (True, False):
        builder = CaptionBuilder(store, codec(world), settings(), training, PictureLoader(CASES / "fc01", 16))
        for index, (row, caption) in enumerate(zip(store, expected, strict=True)):
            [example] = builder.examples(index, row, np.random.default_rng(0))
            assert builder.codec.decode(example.target).strip() == caption
    assert [builder.reference(row) for row in store] == [[caption] for caption in expected]


def test_fc07_duplicate_ids_stay_apart(answerer, world, tmp_path):
    finished = ok(generate(CASES / "fc07" / "vqa.tsv", answerer, tmp_path / "out", task="vqa"))
    assert [entry["question_id"] for entry in entries(tmp_path / "out")] == [5, 6, 5, "05"]
    assert len(entries(tmp_path / "out")) == EXPECTED["fc07"]["results_entries"]
    assert "on 4 rows of test" in finished.output
    answers = '{"red": 0, "green": 1, "square": 2}'
    ok(train(world, CASES / "fc07" / "vqa.tsv", tmp_path / "save", "--ans2label-dict", answers, task="vqa"))


def test_fc09_the_extension_lies(world, captioner, tmp_path):
    rows = [json.loads(line) for line in (CASES / "fc09" / "captions.jsonl").read_text().splitlines()]
    shutil.copytree(CASES / "fc09" / "img", tmp_path / "img")
    lines = [caption_row(number, row["caption"], row["image"]) for number, row in enumerate(rows)]
    (tmp_path / "train.tsv").write_text("".join(lines))
    for backend in ("pil", "fast"):
        pytest.importorskip("simplejpeg") if backend == "fast" else None
        loader = PictureLoader(tmp_path, 48, backend=backend)
        for row, colour in zip(rows, EXPECTED["fc09"]["patch_colours"], strict=True):
            distance = (loader(row["image"]).float() - torch.tensor(colour).view(3, 1, 1)).abs().amax(0)
            assert int((distance <= EXPECTED["fc09"]["tolerance"]).sum()) > 200, (row["image"], backend)
    finished = ok(train(world, tmp_path / "train.tsv", tmp_path / "save"))
    assert f"train: {EXPECTED['fc09']['rows']} rows" in finished.output
    assert not re.search(r"WARNING.*\.(png|jpe?g)", finished.output, re.I)
    ok(generate(tmp_path / "train.tsv", captioner, tmp_path / "out"))
    assert len(entries(tmp_path / "out")) == EXPECTED["fc09"]["rows"]


def test_fc11_odd_pictures_keep_their_colours(world, tmp_path):
    expected = EXPECTED["fc11"]
    store = TSVStore(CASES / "fc11" / "caption.tsv", ("name", "image"), [1, 4])
    reader = ImageReader(CASES / "fc11")
    pictures = {row.name: np.asarray(reader(row.image), dtype=float) for row in store}
    for name, colour in expected["mean_rgb"].items():
        assert np.abs(pictures[name].mean((0, 1)) - colour).max() <= expected["tolerance"], name
    hidden = pictures["rgba_hidden.png"]
    assert hidden[:, : hidden.shape[1] // 2].mean((0, 1)).tolist() == pytest.approx(
        expected["rgba_hidden_left_half"]["alpha dropped (official)"]
    )
    finished = ok(train(world, CASES / "fc11" / "caption.tsv", tmp_path / "save", "--batch-size", 11))
    assert "train: 11 rows" in finished.output


# ---- answers, metrics, order -----------------------------------------------------------------------------------------


def test_fc21_a_row_outside_the_answer_set_stops_training(world, tmp_path):
    answers = ("--ans2label-file", CASES / "fc21" / "answers.txt")
    data = CASES / "fc21" / "vqa.tsv"
    message = error_of(train(world, data, tmp_path / "save", *answers, task="vqa"))
    assert f"{data}:2: answers: no answer of this row is in" in message
    assert "answers.txt" in message and "foodiebaker.com" in message
    assert left_in(tmp_path / "save") == []


def test_fc21_the_best_answer_inside_the_set_is_the_target(world):
    answers = read_answers(str(CASES / "fc21" / "answers.txt"))
    words = codec(world)
    trie = Trie.from_answers([words.encode(f" {answer}").tolist() for answer in answers], bos=words.bos, eos=words.eos)
    store = TSVStore(CASES / "fc21" / "vqa.tsv", VQABuilder.columns, [0, 5, 2, 3, 4], VQABuilder.required)
    pictures = PictureLoader(CASES / "fc21", 16)
    cfg = settings(prompt_type="none", add_object=False, multiple_choice=False)
    builder = VQABuilder(store, words, cfg, True, pictures, AnswerSet(frozenset(answers), trie, "answers.txt"))
    [example] = builder.examples(2, store[2], np.random.default_rng(0))
    assert words.decode(example.target) == " red" and example.confidence == 0.6


def test_fc21_the_other_rows_train_and_all_are_answered(world, answerer, tmp_path):
    lines = (CASES / "fc21" / "vqa.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "two.tsv").write_text(lines[0] + lines[2])
    answers = ("--ans2label-file", CASES / "fc21" / "answers.txt")
    finished = ok(train(world, tmp_path / "two.tsv", tmp_path / "save", *answers, task="vqa"))
    assert len(losses(finished.output)) == 2 and all(float(loss) < 100 for loss in losses(finished.output))
    ok(generate(CASES / "fc21" / "vqa.tsv", answerer, tmp_path / "out", *answers, task="vqa"))
    allowed = set((CASES / "fc21" / "answers.txt").read_text().split())
    assert [entry["answer"] in allowed for entry in entries(tmp_path / "out")] == [True] * 3


def test_fc31_one_image_has_no_cider_but_a_perfect_caption_has_the_rest():
    [caption], [references] = (
        json.loads((CASES / "fc31" / name).read_text()) for name in ("hypotheses.json", "references.json")
    )
    tally = Tally([CIDErD(), BLEU(), ROUGEL()])
    for metric in tally.metrics:
        metric.prepare([references])
    tally.add(caption, references)
    right = EXPECTED["fc31"]
    assert tally.values() == {"cider": right["cider_d"], "bleu4": right["bleu4"], "rouge_l": right["rouge_l"]}


def test_fc31_one_image_has_no_cider(captioner, tmp_path):
    caption = json.loads((CASES / "fc31" / "references.json").read_text())[0][0]
    (tmp_path / "one.tsv").write_text(caption_row(1, caption))
    finished = ok(generate(tmp_path / "one.tsv", captioner, tmp_path / "out"))
    assert len(re.findall("one image: .*CIDEr is 0 by definition.*more images", finished.output)) == 1
    assert "cider = 0.0 on 1 rows" in finished.output
    assert len(entries(tmp_path / "out")) == 1

    longer = ("--min-len", 6)  # BLEU-4 needs four words
    ok(generate(tmp_path / "one.tsv", captioner, tmp_path / "first", *longer))
    [entry] = entries(tmp_path / "first")
    (tmp_path / "perfect.tsv").write_text(caption_row(1, entry["caption"]))
    finished = ok(generate(tmp_path / "perfect.tsv", captioner, tmp_path / "second", *longer))
    assert (
        "cider = 0.0 on 1 rows of test (bleu1 = 1.0, bleu2 = 1.0, bleu3 = 1.0, bleu4 = 1.0, rouge_l = 1.0)"
        in finished.output
    )


def test_fc33_results_are_in_the_order_of_the_file(answerer, tmp_path):
    data = CASES / "fc33" / "vqa.tsv"
    answers = ("--ans2label-file", CASES / "fc33" / "answers.txt")
    ok(generate(data, answerer, tmp_path / "out", *answers, task="vqa"))
    written = entries(tmp_path / "out")
    assert [entry["question_id"] for entry in written] == EXPECTED["fc33"]["question_ids_in_results"]
    printed = hypotheses(tmp_path / "out")
    for number, entry in enumerate(written):  # H- and D- lines carry the row number
        assert printed[str(number)][1].strip() == entry["answer"]
    sources = re.findall(r"^S-(\d+)\t ?(.*)\?$", (tmp_path / "out" / "generate-test.txt").read_text(), re.M)
    asked = [line.split("\t")[2] for line in data.read_text().splitlines()]
    assert all(asked[int(row)] == question for row, question in sources) and len(sources) == len(asked)


def test_fc35_batch_size_changes_nothing(answerer, tmp_path):
    outcomes = []
    for size in EXPECTED["fc35"]["batch_sizes"]:
        answers = ("--ans2label-file", CASES / "fc35" / "answers.txt", "--batch-size", size)
        ok(generate(CASES / "fc35" / "vqa.tsv", answerer, tmp_path / str(size), *answers, task="vqa"))
        outcomes.append((entries(tmp_path / str(size)), hypotheses(tmp_path / str(size))))
    for written, printed in outcomes[1:]:
        assert written == outcomes[0][0]
        for row, (score, _) in printed.items():
            assert abs(score - outcomes[0][1][row][0]) <= EXPECTED["fc35"]["score_difference"]


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def not_finite(message: str, data: Path) -> None:
    """Checks a message about NaN logits for both rows of fc37."""
    assert "non-finite logits at step 0 for ids 100, 101" in message
    assert f"({data}:1, {data}:2)" in message
    assert "--freeze-resnet" in message and "--lr" in message and "fp16" in message


def test_fc37_weights_with_nan_are_named_and_write_nothing(captioner, tmp_path):
    def poison(state: dict) -> None:
        weights = (w for key, w in state["model"].items() if key.startswith("decoder.") and w.is_floating_point())
        next(w for w in weights if w.dim() == 2)[0, 0] = float("nan")

    data = CASES / "fc37" / "caption.tsv"
    poisoned = edited(captioner, tmp_path / "poisoned.pt", poison)
    finished = generate(data, poisoned, tmp_path / "out", "--selected-cols", "0,4,2")
    not_finite(error_of(finished), data)
    assert "16 < 16" not in finished.output
    assert left_in(tmp_path / "out") == []


def test_fc37_broken_statistics_are_named_by_validation_in_training(world, captioner, tmp_path):
    def poison(state: dict) -> None:  # training normalises by the batch, so only evaluation sees it
        state["model"]["encoder.embed_images.bn1.running_var"].fill_(float("nan"))

    data = CASES / "fc37" / "caption.tsv"
    poisoned = edited(captioner, tmp_path / "poisoned.pt", poison)
    finished = run(
        *("train", data, *world.flags("caption")[1:], "--finetune-from-model", poisoned, "--eval-cider"),
        *("--batch-size", 2, "--max-update", 2, "--num-workers", 0, "--selected-cols", "0,4,2"),
        *("--save-dir", tmp_path / "save"),
        log=tmp_path / "train.log",
    )
    not_finite(error_of(finished), data)
    assert left_in(tmp_path / "save") == []


def test_fc40_a_finished_run_says_which_limit_it_reached(world, captioner, tmp_path):
    data, save = CASES / "fc40" / "caption.tsv", tmp_path / "save"
    ok(train(world, data, save, "--max-epoch", 1))
    again = ok(train(world, data, save, "--max-epoch", 1))
    assert again.output.count("nothing to train: ") == 1
    assert "epoch 1 of --max-epoch 1; raise --max-epoch to go on" in again.output
    both = ok(train(world, data, save, "--max-epoch", 1, "--finetune-from-model", captioner))
    [line] = [line for line in both.output.splitlines() if "is ignored" in line]
    assert f"going on from {save}/checkpoint_last.pt; --finetune-from-model {captioner} is ignored" in line
    further = ok(train(world, data, save, "--max-epoch", 2, "--max-update", 3))
    assert [json.loads(log)["num_updates"] for log in re.findall(r"train_inner \| (.*)", further.output)] == ["3"]


@pytest.mark.parametrize("prefix", ["module.", "foo."])
def test_fc42_renamed_weights_are_loaded_or_refused(world, captioner, tmp_path, prefix):
    def rename(state: dict) -> None:
        state["model"] = {prefix + key: weight for key, weight in state["model"].items()}

    data = CASES / "fc40" / "caption.tsv"
    renamed = edited(captioner, tmp_path / "renamed.pt", rename)
    generated = generate(data, renamed, tmp_path / "out")
    flags = ("--max-update", 1)
    anew = ("--reset-optimizer", "--reset-dataloader", "--reset-meters", "--reset-lr-scheduler")
    restored = train(world, data, tmp_path / "restored", "--restore-file", renamed, *anew, *flags)
    tuned = train(world, data, tmp_path / "tuned", "--finetune-from-model", renamed, *flags)
    if prefix == "module.":
        ok(generate(data, captioner, tmp_path / "original"))
        ok(generated)
        assert hypotheses(tmp_path / "out") == hypotheses(tmp_path / "original")
        original = ok(train(world, data, tmp_path / "first", "--finetune-from-model", captioner, *flags))
        assert losses(ok(tuned).output) == losses(ok(restored).output) == losses(original.output) != []
    else:
        for finished in (generated, restored, tuned):
            message = error_of(finished)
            assert re.search(r"0 of \d+ weights matched: expected \S+ first, found foo\.\S+", message)
        assert left_in(tmp_path / "out") == left_in(tmp_path / "restored") == left_in(tmp_path / "tuned") == []


# ---- randomness ------------------------------------------------------------------------------------------------------


def drawn(dataset: OFADataset, workers: int, epochs: tuple[int, ...]) -> list[dict[int, tuple[int, ...]]]:
    """For each epoch, row to what was drawn for it, through the stock iterator."""
    iterator = FairseqTask.get_batch_iterator(
        FairseqTask(None), dataset, max_sentences=2, seed=1, num_workers=workers, epoch=epochs[0]
    )
    seen = []
    for _ in epochs:
        rows: dict[int, tuple[int, ...]] = {}
        for batch in iterator.next_epoch_itr(shuffle=True):
            rows.update(zip(batch["id"].tolist(), map(tuple, batch["net_input"]["src_tokens"].tolist()), strict=True))
        seen.append(rows)
    return seen


@pytest.fixture(scope="module")
def draws(world):
    """Makes a dataset of eight equal rows whose examples are drawn."""

    def make(seed: int = 1) -> OFADataset:
        store = TSVStore(CASES / "fc44" / "image_classify.tsv", DrawingBuilder.columns)
        assert len({tuple(row) for row in store}) == 1 and len(store) == 8
        builder = DrawingBuilder(store, codec(world), settings(), training=True)
        return OFADataset(builder, "train", seed, shuffle=True, image_tokens=0, text_tokens=30)

    return make


def test_fc44_rows_and_epochs_draw_differently_and_a_resume_draws_the_same(draws):
    first, second = drawn(draws(), 0, (1, 2))
    assert len(set(first.values())) == len(set(second.values())) == 8
    assert not set(first.values()) & set(second.values())
    assert drawn(draws(), 0, (1,)) == [first]
    assert drawn(draws(), 0, (2,)) == [second]  # as after a resume
    assert not set(drawn(draws(seed=2), 0, (1,))[0].values()) & set(first.values())


@pytest.mark.parametrize(("workers", "start", "epochs"), [(2, "fork", 2), (4, "fork", 2), (2, "spawn", 1)])
def test_fc44_workers_draw_what_one_process_draws(draws, workers, start, epochs):
    expected = drawn(draws(), 0, (1, 2)[:epochs])
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start, force=True)
    try:
        assert drawn(draws(), workers, (1, 2)[:epochs]) == expected
    finally:
        multiprocessing.set_start_method(usual, force=True)


# ---- places ----------------------------------------------------------------------------------------------------------


def test_fc46_the_same_loss_wherever_the_run_starts(world, tmp_path):
    stray = tmp_path / "stray"
    (stray / "ofa_plugin").mkdir(parents=True)
    (stray / "ofa_plugin" / "__init__.py").write_text("raise SystemExit('the stray folder was imported')")
    found = []
    for folder, user_dir in ((ROOT, "ofa_plugin"), (Path("/"), USER_DIR + "/"), (stray, USER_DIR)):
        flags = ("--user-dir", user_dir, "--no-save")
        finished = train(world, CASES / "fc46" / "caption.tsv", tmp_path / "save", *flags, cwd=folder)
        found.append(losses(ok(finished).output))
    assert found == [found[0]] * 3 and len(found[0]) == 2


def test_fc46_hydra_takes_the_user_dir_too(world, tmp_path):
    """In a process of its own: `fairseq-hydra-train` composes its configuration before it imports the plug-in."""
    data, save = CASES / "fc46" / "caption.tsv", tmp_path / "save"
    given = {
        **{"common.user_dir": USER_DIR, "common.cpu": True, "common.log_format": "json", "common.log_interval": 1},
        **{"task._name": "caption", "task.data": data, "task.bpe": "sentencepiece", "task.bpe_dir": world.root / "bpe"},
        **{"task.num_bins": 10, "task.code_dict_size": 8, "task.patch_image_size": 64, "model._name": "ofa_nano"},
        **{"criterion._name": "adjust_label_smoothed_cross_entropy", "criterion.label_smoothing": 0.1},
        **{"optimizer._name": "adam", "optimization.lr": "[1e-3]", "lr_scheduler._name": "fixed"},
        **{"optimization.max_update": 2, "dataset.batch_size": 2, "dataset.num_workers": 0},
        **{"dataset.disable_validation": True, "checkpoint.no_save": True},
    }
    script = "from fairseq_cli.hydra_train import cli_main; cli_main()"
    command = [sys.executable, "-c", script, *(f"++{name}={value}" for name, value in given.items())]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert finished.returncode == 0, finished.stderr[-3000:]
    usual = ok(train(world, data, save, "--no-save"))
    assert losses(finished.stdout + finished.stderr) == losses(usual.output) != []


def test_fc46_generate_takes_every_data_flag_of_training(world, captioner, tmp_path):
    own_to_a_run = {"data", "vocabulary", "fingerprint", "seed", "path", "rebuild_batches", "persistent_workers"}
    switches = {"imagenet_default_mean_and_std", "exif_transpose", "lenient_images", "eval_print_samples"}
    given = {
        **{"selected_cols": "1,4,2", "bpe": "sentencepiece", "bpe_dir": world.root / "bpe", "num_bins": 10},
        **{"code_dict_size": 8, "max_src_length": 100, "max_tgt_length": 20, "patch_image_size": 64},
        **{"image_backend": "pil", "eval_args": '{"beam": 2}', "autocast": "none", "packed_linears": "on"},
        **{"bad_rows": "stop", "max_bad_fraction": 0.001},
    }
    averages = {"uses_ema", "ema_eval", "use_ema_weights_to_init_param", "use_latest_weights_to_init_ema"}
    flags = {item.name for item in fields(OFATaskConfig) if not str(item.default).startswith("${")}
    of_answers = {"constraint_range", "open_ended", "mask_after_softmax"}  # test_scores.py
    of_answers |= {"write_log_probs", "write_ranking", "reject_below"}
    assert flags - own_to_a_run - averages - of_answers - {"_name"} == given.keys() | switches
    valued = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    data = CASES / "fc46" / "caption.tsv"
    ok(generate(data, captioner, tmp_path / "out", *valued, *(f"--{name.replace('_', '-')}" for name in switches)))


@pytest.mark.parametrize("name", ["a b=naïve 100%", "a,b", "a:b"])
def test_fc47_awkward_folder_names_work(world, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(CASES / "fc40" / "caption.tsv", folder / "test.tsv")
    shutil.copy(CASES / "fc40" / "caption.tsv", folder / "train.tsv")
    save = folder / "save"
    ok(train(world, folder, save, "--max-update", 1))
    resumed = ok(train(world, folder, save, "--max-update", 2))
    assert len(losses(resumed.output)) == 1
    finished = generate(folder, save / "checkpoint_last.pt", folder / "out")
    if ":" in name:  # in --path it separates checkpoints, in DATA and --save-dir it is a sign like any other
        assert "colon" in error_of(finished)
        shutil.copy(save / "checkpoint_last.pt", tmp_path / "checkpoint.pt")
        finished = generate(folder, tmp_path / "checkpoint.pt", folder / "out")
    ok(finished)
    assert len(entries(folder / "out")) == 4


def test_fc48_one_file_is_enough_for_generate(captioner, tmp_path):
    data = tmp_path / "caption_test.tsv"
    shutil.copy(CASES / "fc48" / "caption_test.tsv", data)
    shutil.copy(captioner, tmp_path / "checkpoint.pt")
    finished = ok(generate("caption_test.tsv", "checkpoint.pt", tmp_path / "out", cwd=tmp_path))
    assert len(entries(tmp_path / "out")) == 1
    assert "ZeroDivisionError" not in finished.output
