"""The run scripts print commands that stock fairseq takes."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import ofa_plugin
from tests.helpers.stock import ROOT, USER_DIR

SCRIPTS = sorted(path.name for path in (ROOT / "run_scripts").glob("*.sh") if path.name != "lib.sh")
SIZES = ("nano", "tiny", "medium", "base", "large", "huge")


def script(name, *arguments, cwd=ROOT, **variables):
    """Runs a script with DRY=1 and no GPU."""
    environment = {"PATH": os.environ["PATH"], "DRY": "1", "GPUS": "0", **variables}
    command = ["bash", str(ROOT / "run_scripts" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def parsed(finished):
    """What the stock parser makes of the printed command; it leaves by SystemExit at a flag that it does not know."""
    assert finished.returncode == 0, finished.stderr
    _, dash_m, entry, *words = shlex.split(finished.stdout)
    assert dash_m == "-m" and entry in ("fairseq_cli.train", "fairseq_cli.generate")
    ofa_plugin.register()
    if entry == "fairseq_cli.train":
        parser = options.get_training_parser()
    else:
        parser = options.get_generation_parser()
        parser.add_argument("--arch", default="wav2vec2")  # as fairseq-generate does
    args = options.parse_args_and_arch(parser, words)
    convert_namespace_to_omegaconf(args)
    return args


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_stock_takes_every_flag_of_every_recipe(name, verb, size):
    args = parsed(script(name, verb, size, "/data", BPE_DIR="/bpe", CKPT="/c.pt"))
    assert args.user_dir == USER_DIR and args.data == "/data" and args.bpe_dir == "/bpe"
    if verb == "train":
        assert args.arch == f"ofa_{size}" and args.lr_scheduler == "ofa_polynomial_decay"
        total = {"caption": 128, "vqa_gen": 512, "snli_ve": 256}[args.task]
        assert args.batch_size * args.update_freq[0] == total or size == "nano"
    else:
        assert args.path == "/c.pt" and args.gen_subset == "test"


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_follows_wins_and_spaces_survive(name):
    args = parsed(script(name, "train", "base", "/my data", "--lr", "7", "--batch-size", "3", BPE_DIR="/b p"))
    assert args.lr == [7.0] and args.batch_size == 3
    assert args.data == "/my data" and args.bpe_dir == "/b p"


def test_batches_are_those_of_the_recipe_on_any_number_of_gpus():
    args = parsed(script("caption.sh", "train", "base", "/data", BPE_DIR="/bpe", GPUS="4"))
    assert args.batch_size * args.update_freq[0] * 4 == 128 and args.fp16 and not args.cpu


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_from_any_folder(name, tmp_path):
    args = parsed(script(name, "train", "tiny", BPE_DIR="/bpe", cwd=tmp_path))
    assert args.data.startswith(str(ROOT / "dataset")) and args.save_dir.startswith(str(tmp_path))


@pytest.mark.parametrize("name", SCRIPTS)
def test_init_fine_tunes_and_without_it_the_script_says_from_scratch(name):
    scratch = script(name, "train", "base", "/data", BPE_DIR="/bpe")
    assert "ofa_base from scratch" in scratch.stderr and parsed(scratch).finetune_from_model is None
    tuned = script(name, "train", "base", "/data", BPE_DIR="/bpe", INIT="/w.pt")
    assert not tuned.stderr and parsed(tuned).finetune_from_model == "/w.pt"


def test_official_file_names_are_found(tmp_path):
    for split in ("caption_stage1_train", "caption_val", "caption_test"):
        (tmp_path / f"{split}.tsv").touch()
    args = parsed(script("caption.sh", "train", "base", str(tmp_path), BPE_DIR="/bpe"))
    assert (args.train_subset, args.valid_subset) == ("caption_stage1_train", "caption_val")
    assert parsed(script("caption.sh", "evaluate", "base", str(tmp_path), CKPT="/c.pt")).gen_subset == "caption_test"


def test_the_caption_is_a_premise_where_it_is_asked_for():
    assert not parsed(script("snli_ve.sh", "train", "base", "/data", BPE_DIR="/bpe")).add_caption
    args = parsed(script("snli_ve.sh", "train", "large", "/data", BPE_DIR="/bpe", PREMISE="caption"))
    assert args.add_caption and args.prompt_type == "prev_output" and args.label_smoothing == 0
    assert "PREMISE=text" in script("snli_ve.sh", "train", "base", "/d", BPE_DIR="/b", PREMISE="text").stderr


def test_the_recipe_of_questions_averages_weights_and_reads_object_labels():
    args = parsed(script("vqa.sh", "train", "base", "/data", BPE_DIR="/bpe"))
    assert args.store_ema and args.ema_fp32 and args.uses_ema and args.ema_decay == 0.9999
    assert args.prompt_type == "prev_output" and args.add_object and args.max_object_length == 30


def test_the_answer_set_lies_beside_the_data_unless_named(tmp_path):
    (tmp_path / "trainval_ans2label.pkl").touch()
    flags = {"BPE_DIR": "/bpe"}
    assert parsed(script("vqa.sh", "train", "base", str(tmp_path), **flags)).ans2label_file.startswith(str(tmp_path))
    assert parsed(script("vqa.sh", "train", "base", "/d/a.tsv,/d/b.tsv", **flags)).ans2label_file == "/d/answers.txt"
    named = parsed(script("vqa.sh", "evaluate", "base", "/d", CKPT="/c.pt", ANSWERS="/my answers.txt"))
    assert named.ans2label_file == "/my answers.txt"


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ((), {}, "VERB and SIZE"),
        (("train", "giant", "/d"), {}, "SIZE giant"),
        (("dance", "base", "/d"), {"BPE_DIR": "/b"}, "VERB dance"),
        (("train", "base", "/d"), {}, "BPE_DIR is not set"),
        (("evaluate", "base", "/d"), {}, "CKPT is not set"),
        (("evaluate", "base", "/"), {"CKPT": "/no.pt", "DRY": "0"}, "CKPT=/no.pt"),
        (("train", "base", "/"), {"BPE_DIR": "/b", "INIT": "/no.pt", "DRY": "0"}, "INIT=/no.pt"),
        (("train", "base", "/no"), {"BPE_DIR": "/b", "DRY": "0"}, "/no: no such data"),
    ],
)
@pytest.mark.parametrize("name", SCRIPTS)
def test_mistakes_show_the_usage_and_what_is_wrong(name, arguments, variables, words):
    finished = script(name, *arguments, **variables)
    assert finished.returncode == 2 and not finished.stdout
    assert finished.stderr.splitlines()[-1].startswith("error: ") and words in finished.stderr
    assert f"run_scripts/{name} {{train|evaluate}}" in finished.stderr


@pytest.mark.parametrize("name", ["lib.sh", *SCRIPTS])
def test_scripts_parse(name):
    assert subprocess.run(["bash", "-n", str(ROOT / "run_scripts" / name)]).returncode == 0
