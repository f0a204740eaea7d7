"""The run scripts print commands that stock fairseq takes."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils

import ofa_plugin
from ofa_plugin.launch import refuse_idle_launch
from tests.helpers.stock import ROOT, USER_DIR

SCRIPTS = sorted(path.name for path in (ROOT / "run_scripts").glob("*.sh") if path.name != "lib.sh")
SIZES = ("nano", "tiny", "medium", "base", "large", "huge")
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")
TOTALS = {"caption": 128, "image_classify": 256, "ocr": 128, "snli_ve": 256, "unify_task": 8, "vqa_gen": 512}
TOTALS |= {"detection": 128, "gigaword": 512, "refcoco": 128, "rte": 64}


def script(name, *arguments, cwd=ROOT, task="rte", **variables):
    """Runs a script with DRY=1 and no GPU, that of GLUE for `task`; a variable that is None is not set."""
    if name == "glue.sh" and len(arguments) > 1:
        arguments = (*arguments[:2], task, *arguments[2:])
    environment = {"PATH": os.environ["PATH"], "DRY": "1", "GPUS": "0", **variables}
    environment = {name: value for name, value in environment.items() if value is not None}
    command = ["bash", str(ROOT / "run_scripts" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def parsed(finished):
    """What the stock parser makes of the printed command; it leaves by SystemExit at a flag that it does not know."""
    assert finished.returncode == 0, finished.stderr
    [line] = finished.stdout.splitlines()
    return arguments_of(line)


class Arguments(argparse.Namespace):
    """Those of a command, and the configuration that stock makes of them, a second's work, where it is asked for."""

    @functools.cached_property
    def cfg(self):
        return convert_namespace_to_omegaconf(self.parsed)


def arguments_of(line):
    """The same of one command; `environment` is what the command puts before it."""
    environment, words = {}, shlex.split(line)
    if words[0] == "env":
        while "=" in words[1]:
            name, _, environment[name] = words.pop(1).partition("=")
        del words[0]
    _, dash_m, entry, *words = words
    assert dash_m == "-m" and entry in ("fairseq_cli.train", "fairseq_cli.generate")
    ofa_plugin.register()
    if entry == "fairseq_cli.train":
        parser = options.get_training_parser()
    else:
        parser = options.get_generation_parser()
        parser.add_argument("--arch", default="wav2vec2")  # as fairseq-generate does
    args = options.parse_args_and_arch(parser, words)
    return Arguments(**vars(args), environment=environment, parsed=args)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_stock_takes_every_flag_of_every_recipe(name, verb, size):
    args = parsed(script(name, verb, size, "/data", BPE_DIR="/bpe", CKPT="/c.pt"))
    assert args.user_dir == USER_DIR and args.data == "/data" and args.bpe_dir == "/bpe"
    if verb == "train":
        assert args.arch == f"ofa_{size}" and args.lr_scheduler == "ofa_polynomial_decay"
        total = TOTALS[args.task]
        assert args.batch_size * args.update_freq[0] == total or size == "nano"
    else:
        assert args.path == "/c.pt" and args.gen_subset == "test"


@pytest.mark.parametrize(("size", "pixels"), [("nano", (128, 128, 128)), ("large", (480, 480, 384))])
def test_a_pretrained_checkpoint_answers_what_it_was_not_tuned_for(size, pixels):
    shown = [
        parsed(script(name, "zeroshot", size, "/d", CKPT="/c.pt")) for name in ("refcoco.sh", "vqa.sh", "snli_ve.sh")
    ]
    assert tuple(args.patch_image_size for args in shown) == pixels
    regions, questions, statements = shown
    assert regions.task == "refcoco" and statements.prompt_type == "prev_output"
    assert questions.unconstrained_training and '"beam": 20' in questions.eval_args


@pytest.mark.parametrize("kind", ["refcoco", "refcocoplus", "refcocog"])
def test_the_three_kinds_of_referring_expressions(kind, tmp_path):
    for split in ("train", "val", "testA"):
        (tmp_path / f"{kind}_{split}.tsv").touch()
    trained = parsed(script("refcoco.sh", "train", "base", str(tmp_path), KIND=kind, BPE_DIR="/bpe"))
    assert trained.max_epoch == (12 if kind == "refcocog" else 10)
    assert (trained.train_subset, trained.valid_subset) == (f"{kind}_train", f"{kind}_val")
    shown = parsed(script("refcoco.sh", "zeroshot", "base", str(tmp_path), KIND=kind, CKPT="/c.pt"))
    assert shown.gen_subset == f"{kind}_testA"
    assert "KIND=coco: refcoco, refcocoplus or refcocog" in script("refcoco.sh", "train", "base", KIND="coco").stderr


@pytest.mark.parametrize("size", SIZES)
def test_the_second_stage_of_captioning(size, tmp_path):
    """The official recipe: 64 an update, no dropout, five captions of each picture; stage 1 is never gone on from."""
    given = {"INIT": "/1.pt", "BPE_DIR": "/b"}
    args = parsed(script("caption.sh", "train-scst", size, "/d", "--save-interval", "2", **given))
    assert args.criterion == "scst_reward_criterion" and args.scst and args.scst_cider_cached_tokens is None
    assert json.loads(args.scst_args) == {"beam": 5, "max_len_b": 16, "no_repeat_ngram_size": 3}
    assert args.batch_size * args.update_freq[0] == 64 and (args.max_epoch, args.save_interval) == (3, 2)
    assert (args.dropout, args.encoder_drop_path_rate, args.decoder_drop_path_rate) == (0, 0, 0)
    assert args.lr == [1e-5] and args.warmup_ratio == 0.06
    assert args.end_learning_rate == (2e-7 if size in ("large", "huge") else 0)
    assert args.finetune_from_model == "/1.pt" and args.best_checkpoint_metric == "cider"
    stage1 = parsed(script("caption.sh", "train", size, "/d", BPE_DIR="/b"))
    assert Path(args.save_dir).name == f"caption-scst_{size}" != Path(stage1.save_dir).name
    for split in ("stage1_train", "stage2_train", "val"):
        (tmp_path / f"caption_{split}.tsv").touch()
    official = parsed(script("caption.sh", "train-scst", size, str(tmp_path), DF="/df.json", **given))
    assert (official.train_subset, official.valid_subset) == ("caption_stage2_train", "caption_val")
    assert official.scst_cider_cached_tokens == "/df.json"
    assert "INIT is not set: train-scst goes on" in script("caption.sh", "train-scst", size, "/d", BPE_DIR="/b").stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_follows_wins_and_spaces_survive(name):
    args = parsed(script(name, "train", "base", "/my data", "--lr", "7", "--batch-size", "3", BPE_DIR="/b p"))
    assert args.lr == [7.0] and args.batch_size == 3
    assert args.data == "/my data" and args.bpe_dir == "/b p"


# ---- where it runs ---------------------------------------------------------------------------------------------------


def launch(size="base", name="caption.sh", only=None, **variables):
    """The commands that a training script prints for this host, or the `only` first ones, and what it says beside."""
    finished = script(name, "train", size, "/data", BPE_DIR="/bpe", **variables)
    assert finished.returncode == 0, finished.stderr
    return [arguments_of(line) for line in finished.stdout.splitlines()[:only]], finished.stderr


def started_by_stock(args, monkeypatch, devices):
    """What stock makes of the flags on a host with so many GPUs: the ranks of the processes that it starts there."""
    started = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda **kwargs: started.update(kwargs))
    for name, value in {"SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2", "MASTER_ADDR": "elsewhere"}.items():
        monkeypatch.setenv(name, value)  # remains of a launcher, from which stock would guess
    distributed_utils.call_main(args.cfg, lambda cfg: started.update(nprocs=1, args=(None, cfg, {"start_rank": 0})))
    first = started["args"][2]["start_rank"]
    return list(range(first, first + started["nprocs"]))


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("kind", ["GPUS", "PROCS"])
@pytest.mark.parametrize(("size", "total"), [("base", 128), ("nano", 64)])
def test_an_update_has_the_rows_of_the_recipe_however_many_processes_share_them(size, total, kind, devices):
    where = {"GPUS": None, kind: str(devices)}
    [args], said = launch(size, only=1, **where)
    rows = args.batch_size * args.update_freq[0] * devices
    assert total - devices < rows <= total and (rows == total) == (total % devices == 0)
    assert (f"an update has {rows} rows, not {total}" in said) == (rows != total)
    assert args.batch_size <= 64 // (8 if size == "base" else 1)
    if total % (2 * devices) == 0:
        [args], _ = launch(size, only=1, **where, NODES="2", NODE_RANK="1", MASTER="127.0.0.1")
        assert args.batch_size * args.update_freq[0] * devices * 2 == total


def test_one_gpu_and_one_process_are_one_command_without_ranks(monkeypatch):
    [gpu], [cpu] = launch(GPUS="1")[0], launch(PROCS="1")[0]
    assert gpu.fp16 and not gpu.cpu and gpu.distributed_init_method is None and not gpu.environment
    assert cpu.cpu and cpu.distributed_init_method is None and not cpu.environment
    assert started_by_stock(gpu, monkeypatch, devices=8) == [0]  # on one GPU, though the host has more


def test_gpus_of_one_host_are_started_by_stock(monkeypatch):
    [args] = launch(GPUS="4")[0]
    assert args.fp16 and not args.cpu and args.distributed_init_method.startswith("tcp://localhost:")
    assert started_by_stock(args, monkeypatch, devices=8) == [0, 1, 2, 3]


def test_gpus_of_several_hosts_are_started_by_stock_on_each(monkeypatch):
    for node, ranks in enumerate([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]):
        [args] = launch(GPUS="4", NODES="3", NODE_RANK=str(node), MASTER="127.0.0.1", PORT="1234")[0]
        assert args.distributed_world_size == 12 and args.distributed_init_method == "tcp://127.0.0.1:1234"
        assert args.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"  # stock starts a process for each that it sees
        assert started_by_stock(args, monkeypatch, devices=4) == ranks


def test_visible_devices_are_the_gpus():
    assert launch(GPUS=None, CUDA_VISIBLE_DEVICES="5,7")[0][0].distributed_world_size == 2
    hosts = {"NODES": "2", "NODE_RANK": "0", "MASTER": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "5,6,7"}
    assert launch(GPUS="2", **hosts)[0][0].environment["CUDA_VISIBLE_DEVICES"] == "5,6"
    refused = script("caption.sh", "train", "base", "/data", BPE_DIR="/bpe", GPUS="4", **hosts)
    assert refused.stderr.endswith("error: GPUS=4, but CUDA_VISIBLE_DEVICES=5,6,7\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_processes_on_cpu_are_a_command_for_each_rank(name):
    commands, _ = launch(name=name, GPUS=None, PROCS="2", CUDA_VISIBLE_DEVICES="0")
    assert [args.distributed_rank for args in commands] == [0, 1]
    assert len({args.distributed_init_method for args in commands}) == 1
    for args in commands:
        refuse_idle_launch(args.cfg)
        assert args.cpu and args.distributed_world_size == 2 and int(args.environment["OMP_NUM_THREADS"]) >= 1


def test_processes_of_several_hosts_meet_at_the_first():
    first, _ = launch(PROCS="2", NODES="2", NODE_RANK="0", MASTER="127.0.0.1", OMP_NUM_THREADS="3")
    second, _ = launch(PROCS="2", NODES="2", NODE_RANK="1", MASTER="127.0.0.1", GLOO_SOCKET_IFNAME="eth7")
    assert [args.distributed_rank for args in (*first, *second)] == [0, 1, 2, 3]
    assert {args.distributed_init_method for args in (*first, *second)} == {"tcp://127.0.0.1:29500"}
    assert {args.distributed_world_size for args in (*first, *second)} == {4}
    assert first[0].environment["OMP_NUM_THREADS"] == "3" and second[0].environment["GLOO_SOCKET_IFNAME"] == "eth7"


def test_the_interface_is_looked_up_or_asked_for(tmp_path):
    hosts = {"PROCS": "1", "NODES": "2", "NODE_RANK": "1", "MASTER": "10.9.8.7"}
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "sed", "dirname", "basename", "wc", "cut", "getconf", "head", "awk", "grep", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    commands, said = launch(**hosts, PATH=str(tools), PYTHON=sys.executable)
    assert "GLOO_SOCKET_IFNAME is not set" in said and "GLOO_SOCKET_IFNAME" not in commands[0].environment
    (tools / "getent").symlink_to("/bin/true")
    (tools / "ip").write_text(
        "#!/bin/sh\n[ \"$2\" != route ] || echo '10.9.8.7 via 10.0.0.1 dev ib0 src 10.0.0.5 uid 0'\n"
    )
    (tools / "ip").chmod(0o755)
    commands, said = launch(**hosts, PATH=str(tools), PYTHON=sys.executable)
    assert commands[0].environment["GLOO_SOCKET_IFNAME"] == "ib0" == commands[0].environment["NCCL_SOCKET_IFNAME"]
    assert "GLOO_SOCKET_IFNAME" not in said
    hosts["NODE_RANK"] = "0"
    refused = script("caption.sh", "train", "base", "/d", BPE_DIR="/b", **hosts, PATH=str(tools), PYTHON=sys.executable)
    assert "NODE_RANK=0 runs on MASTER, but 10.9.8.7" in refused.stderr


def test_slurm_starts_the_script_once_on_each_host(tmp_path):
    stubs = {
        "scontrol": "printf 'localhost\\nother\\n'",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nSLURM_NODEID=0 "$@"\nSLURM_NODEID=1 "$@"',
    }
    for tool, content in stubs.items():
        (tmp_path / tool).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / tool).chmod(0o755)
    job = {
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BPE_DIR": "/bpe", "PROCS": "2", **job}
    caption = ROOT / "run_scripts" / "caption.sh"
    finished = script("slurm.sbatch", str(caption), "train", "base", "/data", **variables)
    assert finished.returncode == 0, finished.stderr
    commands = [arguments_of(line) for line in finished.stdout.splitlines()]
    assert [args.distributed_rank for args in commands] == [0, 1, 2, 3]
    assert {args.distributed_init_method for args in commands} == {"tcp://localhost:10077"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PROCS": "2", "GPUS": "2"}, "PROCS=2 is for the CPU and GPUS=2"),
        ({"PROCS": "0"}, "PROCS=0"),
        ({"NODES": "2"}, "needs NODE_RANK"),
        ({"NODES": "2", "NODE_RANK": "2", "MASTER": "a"}, "NODE_RANK=2"),
        ({"NODES": "2", "NODE_RANK": "0"}, "needs MASTER"),
        ({"PROCS": "200"}, "an update has 128 rows, too few for 200"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "torchrun has started 2"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "srun has started 2"),
        ({"SLURM_STEP_NUM_TASKS": "4", "NODES": "2", "NODE_RANK": "0", "MASTER": "a"}, "srun has started 4"),
    ],
)
def test_launches_that_cannot_work_are_refused(variables, words):
    finished = script("caption.sh", "train", "base", "/data", BPE_DIR="/bpe", **variables)
    assert finished.returncode == 2 and not finished.stdout
    assert words in finished.stderr.splitlines()[-1]


def test_evaluation_runs_in_several_processes_of_one_host():
    for where, cpu in (({"PROCS": "2"}, True), ({"GPUS": "2"}, False)):
        printed = script("caption.sh", "evaluate", "base", "/data", CKPT="/c.pt", **where).stdout
        assert "--distributed-world-size 2" in printed and ("--cpu" in printed) == cpu
    alone = script("caption.sh", "evaluate", "base", "/data", CKPT="/c.pt", GPUS="0").stdout
    assert "--distributed-world-size" not in alone
    away = {"NODES": "2", "NODE_RANK": "0", "MASTER": "a", "PROCS": "1"}
    refused = script("caption.sh", "evaluate", "base", "/data", CKPT="/c.pt", **away)
    assert refused.returncode == 2 and "evaluate runs on one host" in refused.stderr


def ranks(tmp_path, behaviour, **variables):
    """PROCS=3 of a script whose training is replaced by the shell lines `behaviour`; $rank is known to them."""
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/bash\n[[ $1 != -c ]] || exec {sys.executable} "$@"\nfor rank; do :; done\n{behaviour}\n')
    stub.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PROCS": "3", "PYTHON": str(stub), "BPE_DIR": "/bpe"}
    environment |= {"SAVE": str(tmp_path / "save"), **variables}
    command = ["bash", str(ROOT / "run_scripts" / "caption.sh"), "train", "nano", str(tmp_path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("behaviour", "code", "last"),
    [
        ('echo "rank $rank"', 0, "from scratch"),
        ('[[ $rank != 1 ]] || { echo "[rank1]: error: bad row"; echo more; exit 5; }; exec sleep 60', 5,
         "error: rank 1 of 3 failed with exit code 5: bad row (all it printed: {save}.rank1.log); {ended}"),
        ('[[ $rank = 2 ]] || { echo "error: another rank has ended"; exit 1; }; sleep 0.5; echo "oh"; exit 4', 4,
         "error: rank 2 of 3 failed with exit code 4: oh (all it printed: {save}.rank2.log); {ended}"),
        ('[[ $rank = 0 ]] || { echo "error: another rank has ended"; exit 1; }; echo "my fault" >&2; exit 3', 3,
         "error: rank 0 of 3 failed with exit code 3: see above; {ended}"),
        ('[[ $rank != 2 ]] || kill -9 $$; exec sleep 60', 137,
         "error: rank 2 of 3 was killed, as the system does when memory runs out "
         "(all it printed: {save}.rank2.log); {ended}"),
    ],
)  # fmt: skip
def test_one_rank_that_fails_ends_all_and_is_named(tmp_path, behaviour, code, last):
    running, start = ranks(tmp_path, behaviour), time.monotonic()
    printed, said = running.communicate(timeout=30)
    assert running.returncode == code and time.monotonic() - start < 20, said
    ended = "the other ranks of this host were ended"
    assert said.splitlines()[-1].endswith(last.format(save=tmp_path / "save", ended=ended))
    assert ("rank 0" in printed) == (code == 0)
    assert (tmp_path / "save.rank1.log").exists() and not (tmp_path / "save.rank0.log").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_all_ranks_and_their_children(tmp_path, number, code):
    running = ranks(tmp_path, f"sleep 77 & echo $! >>{tmp_path}/children; echo $$ >>{tmp_path}/children; wait")
    children = tmp_path / "children"
    while not children.exists() or len(children.read_text().split()) < 6:
        time.sleep(0.1)
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == code
    for child in children.read_text().split():
        stat = Path(f"/proc/{child}/stat")
        assert not stat.exists() or stat.read_text().split()[2] == "Z"


def processes(world, tmp_path, data, *flags):
    """PROCS=2 of the real thing on the small world."""
    environment = {"PATH": os.environ["PATH"], "PROCS": "2", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"BPE_DIR": str(world.root / "bpe"), "SAVE": str(tmp_path / "save")}
    command = [
        "bash",
        str(ROOT / "run_scripts" / "caption.sh"),
        "train",
        "nano",
        str(data),
        "--num-workers",
        "0",
        *flags,
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_two_processes_train(world, tmp_path):
    finished = processes(world, tmp_path, world.root / "caption", "--max-update", "3")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "training on 2 devices" in finished.stdout and "num_updates 3" in finished.stdout
    state = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["distributed_training"]["distributed_world_size"] == 2
    assert "rank 1" in (tmp_path / "save.rank1.log").read_text()


def test_a_bad_row_on_one_rank_ends_both_with_its_place(world, tmp_path):
    rows = (world.root / "caption" / "train.tsv").read_text().splitlines(keepends=True)
    rows[40] = "\t".join(rows[40].split("\t")[:3]) + "\n"
    (tmp_path / "train.tsv").write_text("".join(rows))
    finished = processes(world, tmp_path, tmp_path, "--max-epoch", "1", "--disable-validation")
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: rank ") and last.endswith("the other ranks of this host were ended")
    told = finished.stderr if "rank 0 of 2" in last else last  # rank 0 prints to the terminal itself
    assert "train.tsv row 41" in told or "train.tsv:41" in told, finished.stderr


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


@pytest.mark.parametrize("task", GLUE)
def test_the_recipes_of_glue_lie_within_what_the_official_scripts_try(task):
    """`ofa-tasks.md` 8: devices x batch x update-freq, learning rates, epochs, selection metric."""
    (devices, each, frequencies), every = {
        "cola": ((2, 16, (4, 2, 1)), 10),
        "mrpc": ((2, 16, (4, 2, 1)), 10),
        "rte": ((2, 8, (8, 4, 2)), 10),
        "sst2": ((4, 16, (2, 1)), 50),
        "mnli": ((8, 8, (4, 2)), 1000),
        "qnli": ((8, 8, (4, 2)), 500),
        "qqp": ((8, 8, (4, 2)), 1000),
    }[task]
    args = parsed(script("glue.sh", "train", "large", "/data", BPE_DIR="/bpe", task=task))
    assert args.task == task and args.batch_size == each and args.validate_interval_updates == every
    assert args.batch_size * args.update_freq[0] in [devices * each * frequency for frequency in frequencies]
    assert args.lr[0] in (1e-4, 7e-5, 6e-5, 5e-5, 3e-5) and args.max_epoch in (5, 7, 10)
    assert (args.warmup_ratio, args.label_smoothing, args.prompt_type) == (0.06, 0.0, "src")
    assert (args.max_src_length, args.max_tgt_length, args.fp16_init_scale) == (512, 30, 16)
    assert args.best_checkpoint_metric == ("mcc" if task == "cola" else "acc") and args.maximize_best_checkpoint_metric
    assert args.save_dir.endswith(f"/checkpoints/{task}_large")


def test_a_task_of_glue_is_named_and_has_its_official_files(tmp_path):
    (tmp_path / "qqp_train.tsv").touch()
    (tmp_path / "qqp_dev.tsv").touch()
    args = parsed(script("glue.sh", "train", "nano", str(tmp_path), BPE_DIR="/bpe", task="qqp"))
    assert (args.train_subset, args.valid_subset) == ("qqp_train", "qqp_dev")
    refused = script("glue.sh", "train", "nano", "/data", BPE_DIR="/bpe", task="wnli")
    assert refused.stderr.endswith("error: TASK wnli: one of cola mnli mrpc qnli qqp rte sst2\n")


def test_the_recipe_of_summaries_has_the_official_numbers():
    args = parsed(script("gigaword.sh", "train", "large", "/data", BPE_DIR="/bpe"))
    assert (args.lr, args.max_epoch, args.warmup_ratio, args.label_smoothing) == ([1e-4], 6, 0.06, 0.1)
    assert (args.max_src_length, args.max_tgt_length, args.noise_ratio) == (512, 64, 0.2)
    assert (args.encoder_drop_path_rate, args.decoder_drop_path_rate) == (0.1, 0.1)
    assert args.validate_interval_updates == 2500 and args.best_checkpoint_metric == "rougeL_f1" and args.eval_rouge
    settings = {"beam": 6, "lenpen": 0.7, "max_len_b": 32, "no_repeat_ngram_size": 3}
    assert json.loads(args.eval_args) == settings
    answered = parsed(script("gigaword.sh", "evaluate", "large", "/data", CKPT="/c.pt"))
    assert json.loads(answered.eval_args) == settings and answered.batch_size == 32


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


def test_image_classification_has_the_official_numbers(tmp_path):
    """`ofa-tasks.md` 8: one row, that of large."""
    (tmp_path / "class2label_new.pkl").touch()
    for split in ("train", "val_subset", "val"):
        (tmp_path / f"imagenet_1k_{split}.tsv").touch()
    args = parsed(script("image_classify.sh", "train", "large", str(tmp_path), BPE_DIR="/bpe"))
    assert (args.lr, args.max_update, args.warmup_updates, args.label_smoothing) == ([5e-5], 160000, 1000, 0.1)
    assert (args.encoder_drop_path_rate, args.decoder_drop_path_rate, args.patch_image_size) == (0.1, 0.1, 480)
    assert (args.max_src_length, args.max_tgt_length) == (128, 30) and args.imagenet_default_mean_and_std
    assert args.freeze_encoder_embedding and args.freeze_decoder_embedding
    assert args.best_checkpoint_metric == "score" and args.ans2label_file == str(tmp_path / "class2label_new.pkl")
    assert (args.train_subset, args.valid_subset) == ("imagenet_1k_train", "imagenet_1k_val_subset")
    tested = parsed(script("image_classify.sh", "evaluate", "large", str(tmp_path), CKPT="/c.pt"))
    assert tested.gen_subset == "imagenet_1k_val" and tested.ans2label_file is None and tested.batch_size == 8
    named = parsed(script("image_classify.sh", "train", "nano", "/d", BPE_DIR="/bpe"))
    assert named.ans2label_file == "/d/classes.txt" and named.imagenet_default_mean_and_std


@pytest.mark.parametrize(("size", "lr", "drop"), [("base", 5e-5, 0.1), ("tiny", 5e-5, 0.1), ("huge", 3e-5, 0.2)])
def test_reading_takes_the_numbers_of_its_size(size, lr, drop):
    args = parsed(script("ocr.sh", "train", size, "/data", "--bpe", "bert", BPE_DIR="/bpe"))
    assert (args.lr, args.encoder_drop_path_rate, args.decoder_drop_path_rate) == ([lr], drop, drop)
    assert (args.best_checkpoint_metric, args.patch_image_size, args.bpe) == ("acc", 480, "bert")
    assert '"max_len_b": 64' in parsed(script("ocr.sh", "evaluate", size, "/data", CKPT="/c.pt")).eval_args


# ---- pretraining -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "medium", "base", "large", "huge"])
def test_pretraining_has_the_official_numbers(size):
    """`ofa-tasks.md` 8: one row for base and large."""
    args = parsed(script("pretrain.sh", "train", size, "/data", BPE_DIR="/bpe"))
    assert (args.task, args.lr, args.max_epoch, args.warmup_ratio) == ("unify_task", [1e-4], 50, 0.01)
    assert (args.clip_norm, args.label_smoothing, args.weight_decay) == (5.0, 0.0, 0.01)
    assert (args.patch_image_size, args.max_image_size, args.code_image_size) == (384, 512, 128)
    assert (args.max_src_length, args.max_tgt_length, args.sample_patch_num) == (80, 30, 196)
    assert (args.encoder_drop_path_rate, args.decoder_drop_path_rate) == (0.1, 0.1)
    assert (args.save_interval_updates, args.keep_interval_updates, args.fp16_scale_window) == (6000, 15, 128)
    assert args.batch_size * args.update_freq[0] == 8 and (args.train_subset, args.valid_subset) == ("train", "valid")


def test_official_files_in_the_data_folder_itself_become_flags(tmp_path):
    for name in ("vision_language", "text", "detection"):
        (tmp_path / f"{name}_examples.tsv").touch()
    args = parsed(script("pretrain.sh", "train", "base", str(tmp_path), BPE_DIR="/bpe"))
    assert args.data == str(tmp_path / "vision_language_examples.tsv")
    assert args.text_data == str(tmp_path / "text_examples.tsv") and args.image_data is None
    assert args.detection_data == str(tmp_path / "detection_examples.tsv")
    assert args.neg_sample_dir == str(tmp_path / "negative_sample") and args.disable_validation


@pytest.mark.parametrize(("verb", "flags"), [("train", {"BPE_DIR": "/b"}), ("evaluate", {"CKPT": "/c.pt"})])
def test_a_folder_of_subsets_needs_no_flags(tmp_path, verb, flags):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "vision_language_examples.tsv").touch()
    args = parsed(script("pretrain.sh", verb, "base", str(tmp_path), **flags))
    assert args.data == str(tmp_path) and args.text_data is None and args.neg_sample_dir is None


@pytest.mark.parametrize("devices", ["2", "3", "16"])
def test_every_process_of_pretraining_has_a_batch_that_holds_every_file(devices):
    commands, said = launch("base", "pretrain.sh", GPUS=devices)
    assert {args.batch_size * args.update_freq[0] for args in commands} == {8} and "rows, not" not in said


def test_pretraining_trains_on_official_files(shapes, tmp_path):
    data = tmp_path / "pretrain_data"
    shutil.copytree(shapes.root / "train", data)
    (data / "negative_sample").symlink_to(shapes.root / "negative_sample")
    environment = {"PATH": os.environ["PATH"], "GPUS": "0", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"BPE_DIR": str(shapes.root / "bpe"), "SAVE": str(tmp_path / "save")}
    flags = ("--max-update", "2", "--num-workers", "0", "--patch-image-size", "64", "--max-image-size", "64")
    flags += ("--code-image-size", "32")
    command = ["bash", str(ROOT / "run_scripts" / "pretrain.sh"), "train", "nano", str(data), *flags]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "num_updates 2" in finished.stdout and "loss_detection" in finished.stdout
    state = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["task"]["_name"] == "unify_task" and state["cfg"]["dataset"]["batch_size"] == 16


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
    assert f"run_scripts/{name} {{train|" in finished.stderr


@pytest.mark.parametrize("name", ["lib.sh", "slurm.sbatch", *SCRIPTS])
def test_scripts_parse(name):
    assert subprocess.run(["bash", "-n", str(ROOT / "run_scripts" / name)]).returncode == 0


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is absent; Debian's package of that name has it")
    files = sorted(path for path in (ROOT / "run_scripts").iterdir() if path.is_file())
    finished = subprocess.run(["shellcheck", "-x", *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout
