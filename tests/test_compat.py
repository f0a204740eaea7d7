"""Every cure, beside what stock does without it."""

from __future__ import annotations

import argparse
import errno
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fairseq
import hydra.core.utils
import numpy as np
import omegaconf
import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.data import data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.file_io import PathManager
from fairseq.ngram_repeat_block import NGramRepeatBlock
from torch._utils import ExceptionWrapper

import ofa_plugin
from ofa_plugin import compat, launch
from ofa_plugin.errors import BadRow, UserError
from tests.helpers.stock import ROOT, ok, run

compat.apply()
TOY = ROOT / "tests" / "helpers" / "ofa_toy"


def stock_of(cure: str, attribute: str):
    """What stock has where `cure` put its own."""
    return next(stock for _, name, stock in compat.replaced[cure] if name == attribute)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Runs fairseq-train on the toy user-dir into tmp_path/save; `without` takes cures away again."""

    def train(*flags, entry="train", arch="toy_flat", without="", save="save", user_dir=TOY, log="log"):
        monkeypatch.setenv("WITHOUT", without)
        return run(
            *(entry, "nothing", "--user-dir", user_dir, "--task", "toy_copy", "--arch", arch, "--cpu"),
            *("--criterion", "cross_entropy", "--optimizer", "adam", "--lr", "1e-2", "--batch-size", 4),
            *("--no-epoch-checkpoints", "--num-workers", 0, "--log-format", "none", "--save-dir", tmp_path / save),
            *("--ignore-unused-valid-subsets", *flags),
            log=tmp_path / log,
        )

    return train


def generate(tmp_path, checkpoint, *flags):
    return run(
        *("generate", "nothing", "--user-dir", TOY, "--task", "toy_copy", "--path", checkpoint, "--cpu"),
        *("--gen-subset", "test", "--batch-size", 4, "--scoring", "toy_exact", "--num-workers", 0, *flags),
        log=tmp_path / "generate.log",
    )


def told(finished) -> str:
    """The one line of a refused run."""
    assert finished.code == 1, finished.output[-3000:]
    assert "Traceback" not in finished.output
    (line,) = finished.lines("error: ")
    return line


def updates_in(path: Path) -> int:
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))["optimizer_history"][-1]["num_updates"]


# ---- the list itself -------------------------------------------------------------------------------------------------


def test_the_page_of_cures_has_them_all():
    page = (ROOT / "docs" / "compat.md").read_text()
    for cure in compat.CURES:
        assert f"| `{cure.name}` | {cure.defect} | {cure.versions} | {cure.replaces or 'nothing'} |" in page


def test_every_cure_says_what_it_is_for_and_is_applied_once():
    assert [cure.name for cure in compat.CURES] == list(compat.replaced)
    before = sys.excepthook, checkpoint_utils.load_checkpoint_to_cpu
    compat.apply()
    assert before == (sys.excepthook, checkpoint_utils.load_checkpoint_to_cpu)
    for cure in compat.CURES:
        assert cure.defect and cure.versions
        names = {name for _, name, _ in compat.replaced[cure.name]}
        assert all(name in cure.replaces for name in names) and bool(names) == bool(cure.replaces)


# ---- leaving ---------------------------------------------------------------------------------------------------------

READS_AHEAD = """
import torch
from fairseq.data.iterators import BufferedIterator
import tests.helpers.without

class Endless:
    def __len__(self):
        return 10**6
    def __iter__(self):
        while True:
            yield [torch.ones(64, 64) @ torch.ones(64, 64) for _ in range(200)]

print(len(next(BufferedIterator(ROOM, Endless()))))
"""


@pytest.mark.parametrize("room", [2, 10**6])  # a full queue, and one that never fills
def test_a_run_that_ends_within_an_epoch_ends_well_where_stock_aborts(room):
    def leave(without):
        environment = {**os.environ, "WITHOUT": without, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", READS_AHEAD.replace("ROOM", str(room))]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    cured = leave("")
    assert (cured.returncode, cured.stdout) == (0, "200\n"), cured.stderr[-2000:]
    if room > 2:  # with a full queue stock's thread sleeps, and nothing happens
        stock = leave("reading_at_the_end")
        assert stock.returncode == -6 and "terminate called without an active exception" in stock.stderr


# ---- reading checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["toy_flat", "toy_legacy_8"])
def test_a_run_resumes_validates_and_generates_from_its_own_checkpoint(toy, tmp_path, arch):
    ok(toy("--max-update", 2, arch=arch))
    ok(toy("--max-update", 4, arch=arch))
    last = tmp_path / "save" / "checkpoint_last.pt"
    assert updates_in(last) == 4
    validated = run(
        *("validate", "nothing", "--user-dir", TOY, "--task", "toy_copy", "--path", last, "--cpu"),
        *("--valid-subset", "valid", "--batch-size", 4, "--num-workers", 0),
        log=tmp_path / "validate.log",
    )
    ok(validated)
    assert re.search(r"exact \d of 6", ok(generate(tmp_path, last)).output)


def test_stock_cannot_resume_a_legacy_checkpoint(toy):
    ok(toy("--max-update", 2, arch="toy_legacy_8"))
    refused = toy("--max-update", 4, arch="toy_legacy_8", without="data_only_checkpoints,load_on_all_ranks")
    assert refused.code != 0 and "argparse.Namespace" in refused.output


def write(path: Path, **state) -> str:
    """A checkpoint as fairseq writes it, with `state` in it."""
    whole = {
        "model": {"weight": torch.ones(2)},
        "optimizer_history": [{"num_updates": 3, "optimizer_name": "x", "lr_scheduler_state": {}}],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "cfg": {"model": {"_name": "ofa_base"}, "task": {"_name": "caption"}},
        **state,
    }
    torch.save(whole, path)
    return str(path)


def test_a_checkpoint_of_official_form_is_read(tmp_path):
    model = argparse.Namespace(_name="ofa_large", arch="ofa_large", scale_attn=True)
    numbers = {"val_loss": np.float64(0.5), "best": np.float32(0.25), "seen": np.arange(3)}
    path = write(
        tmp_path / "official.pt",
        cfg={"model": model, "task": {"_name": "unify_task"}, "criterion": {"_name": "scst_reward_criterion"}},
        extra_state={"train_iterator": {"epoch": 2}, **numbers},
        args=None,
    )
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    assert state["cfg"].model.scale_attn is True
    assert state["extra_state"]["val_loss"] == 0.5 and state["extra_state"]["seen"].tolist() == [0, 1, 2]


class Payload:
    """Pickles as a call of os.system that makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("forced", ["0", "1"])
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(tmp_path, monkeypatch, zipped, forced):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    mark, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"model": {}, "x": Payload(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pt: refused.*posix\.system.*nothing of it was run.*safetensors"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert not mark.exists()
    if forced == "1":  # what stock does then
        monkeypatch.setattr(checkpoint_utils, "torch", torch)
        with pytest.raises(Exception), warnings.catch_warnings():  # noqa: B017  its contents are no checkpoint
            warnings.simplefilter("ignore")
            stock_of("data_only_checkpoints", "load_checkpoint_to_cpu")(str(path))
        assert mark.exists()


def test_a_plain_malicious_pickle_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UserError, match="evil.pt: "):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert not (tmp_path / "ran").exists()


def spoil(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "flipped":  # one bit of a weight
        at = whole.index(np.full(64, 1.5, np.float32).tobytes()) + 3
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
    else:
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"hello " * 99}[how])


@pytest.mark.parametrize("how", ["empty", "truncated", "garbage", "flipped"])
def test_a_damaged_file_is_named_with_another_to_take(tmp_path, how):
    write(tmp_path / "checkpoint3.pt")
    path = write(tmp_path / "checkpoint_last.pt", model={"weight": torch.full((64,), 1.5)})
    spoil(tmp_path / "checkpoint_last.pt", how)
    with pytest.raises(UserError, match=r"checkpoint_last\.pt: damaged.*checkpoint3\.pt"):
        checkpoint_utils.load_checkpoint_to_cpu(path)
    if how == "flipped":  # torch alone does not see it
        assert torch.load(path, weights_only=True)["model"]["weight"].ne(1.5).sum() == 1


def test_a_compressed_file_is_refused(tmp_path):
    path = write(tmp_path / "a.pt")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"a\.pt: refused.*compressed"):
        checkpoint_utils.load_checkpoint_to_cpu(path)


@pytest.mark.parametrize(
    ("cfg", "named"),
    [
        ({"model": {"_name": "ofa_base", "x": "${oc.env:SECRET}"}}, "${oc.env:SECRET}"),
        ({"model": argparse.Namespace(_name="ofa_base", x=["${oc.env:SECRET}"])}, "${oc.env:SECRET}"),
        ({"model": omegaconf.OmegaConf.create({"_name": "ofa_base", "x": "${oc.env:SECRET}"})}, "${oc.env:SECRET}"),
        ({"model": {"_name": "fconv", "encoder_layers": "__import__('os')"}}, "'fconv'"),
        ({"model": argparse.Namespace(arch="fconv_iwslt_de_en")}, "'fconv_iwslt_de_en'"),
        ({"model": {"_name": "ofa_base"}, "task": {"_name": "translation"}}, "'translation'"),
        ({"model": {"_name": "ofa_base"}, "criterion": {"_name": "ctc", "wer_args": "1"}}, "'ctc'"),
    ],
)
def test_settings_that_stock_would_run_are_refused(tmp_path, cfg, named):
    path = write(tmp_path / "a.pt", cfg=cfg)
    with pytest.raises(UserError, match=rf"a\.pt: refused.*{re.escape(named)}"):
        checkpoint_utils.load_checkpoint_to_cpu(path)
    stock = stock_of("data_only_checkpoints", "load_checkpoint_to_cpu")
    before, checkpoint_utils.torch = checkpoint_utils.torch, torch
    try:
        assert stock(path)["cfg"].model is not None  # without the cure it loads
    finally:
        checkpoint_utils.torch = before


def test_settings_of_old_checkpoints_are_looked_at_too(tmp_path):
    args = argparse.Namespace(arch="fconv", task="translation")
    with pytest.raises(UserError, match="'fconv'"):
        checkpoint_utils.load_checkpoint_to_cpu(write(tmp_path / "a.pt", cfg=None, args=args))


@pytest.mark.parametrize(
    "tensor", [torch.ones(1).expand(1 << 30), torch.ones(3, 3).to_sparse()], ids=["expanded", "sparse"]
)
def test_tensors_that_are_more_than_their_bytes_are_refused(tmp_path, tensor):
    with pytest.raises(UserError, match=r"a\.pt: refused.*odd"):
        checkpoint_utils.load_checkpoint_to_cpu(write(tmp_path / "a.pt", model={"odd": tensor}))


def test_something_else_than_a_checkpoint_is_named(tmp_path):
    torch.save([1], tmp_path / "list.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    for name in ("list.pt", "weights.pt"):
        with pytest.raises(UserError, match=f"{name}: .*take another"):
            checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name))


def test_checks_see_every_checkpoint_that_is_read(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(
        compat.checkpoint_checks, "test", lambda name, state: seen.append((name, state["cfg"].task._name))
    )
    path = write(tmp_path / "a.pt")
    checkpoint_utils.load_checkpoint_to_cpu(path)
    assert seen == [(path, "caption")]


def test_a_missing_path_is_named(tmp_path):
    assert f"--path {tmp_path}/no.pt: no such file" in told(generate(tmp_path, tmp_path / "no.pt"))


def test_weights_of_another_size_name_both_architectures(toy, tmp_path):
    ok(toy("--max-update", 1))
    line = told(toy("--max-update", 2, "--width", 4))
    assert "checkpoint_last.pt: its weights (toy_flat) do not fit --arch toy_flat" in line and "size mismatch" in line


def free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def test_two_ranks_resume(toy, tmp_path):
    def both(limit, without=""):
        port = free_port()

        def rank(number):
            return toy(
                *("--max-update", limit, "--distributed-world-size", 2, "--distributed-rank", number),
                *("--distributed-init-method", f"tcp://localhost:{port}", "--distributed-no-spawn"),
                *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
                without=without,
                log=f"log{number}",
            )

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(rank, (0, 1)))

    for finished in both(2):
        ok(finished)
    refused = both(4, without="load_on_all_ranks")
    assert any(finished.code for finished in refused) and "Unsupported global" in refused[1].output
    for finished in both(4):
        ok(finished)
    assert updates_in(tmp_path / "save" / "checkpoint_last.pt") == 4


# ---- writing checkpoints ---------------------------------------------------------------------------------------------


def test_copies_take_the_place_of_the_old_file_at_once(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("new")
    old.write_text("old")
    reader = old.open()  # whoever reads the old file goes on reading the old file
    assert PathManager.copy(str(new), str(old), overwrite=True)
    assert (old.read_text(), reader.read()) == ("new", "old")

    old.write_text("old")
    reader = old.open()
    stock_of("atomic_checkpoints", "copy").__func__(str(new), str(old), overwrite=True)
    assert reader.read() == "new"  # stock writes over the only copy, byte by byte


@pytest.mark.parametrize("how", ["copy", "save"])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch, how):
    source, target = tmp_path / "source.pt", tmp_path / "checkpoint_last.pt"
    source.write_text("new")
    target.write_text("old")

    def full(source_or_state, file, *rest):
        file.write(b"half")
        raise RuntimeError("unexpected pos") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compat.shutil, "copyfileobj", lambda a, b, size: full(a, b))
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"checkpoint_last\.pt: no space left"):
        if how == "copy":
            PathManager.copy(str(source), str(target), overwrite=True)
        else:
            checkpoint_utils.torch_persistent_save({}, str(target))
    assert target.read_text() == "old" and not target.with_name("checkpoint_last.pt.tmp").exists()


def test_data_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    checkpoint_utils.torch_persistent_save({"x": 1}, str(tmp_path / "a.pt"))
    assert events == ["sync", "replace", "sync"]
    assert torch.load(tmp_path / "a.pt", weights_only=True) == {"x": 1}
    events.clear()
    stock_of("atomic_checkpoints", "torch_persistent_save")({"x": 1}, str(tmp_path / "b.pt"))
    assert "sync" not in events


# ---- generation and data ---------------------------------------------------------------------------------------------


def test_repeated_bigrams_are_blocked_in_a_padded_buffer():
    tokens = torch.tensor([[2, 5, 6, 5, 1, 1, 1, 1]])  # after 5 6 5, another 6 would repeat "5 6"
    blocker = NGramRepeatBlock(2, use_extension=False)
    assert blocker(tokens, torch.zeros(1, 9), 1, 1, 3)[0].isinf().nonzero().flatten().tolist() == [6]
    stock = stock_of("no_repeat_ngram", "_no_repeat_ngram")
    assert not stock(blocker, tokens, torch.zeros(1, 9), 1, 1, 3).isinf().any()


def training_cfg(data, *flags):
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(
        parser,
        [str(data), "--task", "translation", "--arch", "transformer", "--batch-size", "2", *map(str, flags)],
    )
    return convert_namespace_to_omegaconf(args)


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv,b.tsv", "a:b"])
def test_data_that_is_no_folder_is_not_listed(tmp_path, name):
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a.tsv").touch()
    data = ",".join(str(tmp_path / part) for part in name.split(","))
    cfg = training_cfg(data)
    data_utils.raise_if_valid_subsets_unintentionally_ignored(cfg)
    with pytest.raises(OSError):
        stock_of("data_is_no_folder", "_find_extra_valid_paths")(data)


def test_validation_files_that_nobody_asked_for_are_named(tmp_path):
    (tmp_path / "valid1.tsv").touch()
    cfg = training_cfg(tmp_path)
    with pytest.raises(UserError, match=r"valid1.*--ignore-unused-valid-subsets"):
        data_utils.raise_if_valid_subsets_unintentionally_ignored(cfg)


# ---- starts that would lose something --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--amp",), "--amp divides"),
        (("--write-checkpoints-asynchronously",), "--write-checkpoints-asynchronously never"),
        (("--fp16",), "--fp16 needs a GPU"),
        (("--bf16",), "--bf16 needs a GPU"),
        (("--distributed-world-size", 2), "--distributed-init-method"),
        (("--distributed-init-method", "tcp://localhost:9"), "--distributed-no-spawn"),
    ],
)
def test_flags_that_lose_something_are_refused_before_anything_is_written(toy, tmp_path, flags, words):
    assert words in told(toy("--max-update", 1, *flags))
    assert not (tmp_path / "save").exists()


def test_a_folder_that_is_trained_into_takes_no_second_run_until_the_first_has_ended(toy, tmp_path):
    save = tmp_path / "save"
    save.mkdir()
    holding = (
        f"import sys; from ofa_plugin import launch; launch.hold_save_folder({str(save)!r}); print(); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        first.stdout.readline()
        assert f"process {first.pid} on " in told(toy("--max-update", 1)) and not (save / "checkpoint_last.pt").exists()
        ok(toy("--max-update", 1, save="other"))
        ok(toy("--max-update", 1, without="unsafe_starts"))  # stock trains beside it
        first.kill()
    ok(toy("--max-update", 2))
    assert not (save / ".training").exists()


@pytest.mark.parametrize("flags", [("--fp16", "--fp16-no-flatten-grads"), ("--memory-efficient-fp16",)])
def test_half_precision_that_works_on_cpu_is_let_through(tmp_path, flags):
    launch.refuse_unsafe_start(training_cfg(tmp_path, "--cpu", *flags))


def test_bf16_is_not_taken_for_a_tpu(toy, tmp_path):
    ok(toy("--max-update", 1, "--bf16", "--fp16-no-flatten-grads"))
    assert training_cfg(tmp_path, "--bf16").common.tpu is False
    stock = toy("--max-update", 1, "--bf16", "--fp16-no-flatten-grads", without="bf16", save="other")
    assert stock.code != 0 and "xla_device" in stock.output


def test_cpu_beside_several_gpus_means_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for flags, processes in ((("--cpu",), 1), ((), 2), (("--cpu", "--distributed-init-method", "tcp://a:1"), 2)):
        cfg = training_cfg(tmp_path, "--distributed-world-size", 2, *flags)
        launch.one_process_on_cpu(cfg)
        assert cfg.distributed_training.distributed_world_size == processes


def test_torchrun_without_a_world_size_is_refused(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"WORLD_SIZE=2.*--distributed-world-size"):
        launch.refuse_idle_launch(training_cfg(tmp_path, "--cpu", "--distributed-world-size", 1))


def test_the_refusal_names_the_flags_that_are_missing(tmp_path):
    cfg = training_cfg(tmp_path, "--cpu", "--distributed-world-size", 2, "--distributed-no-spawn")
    with pytest.raises(UserError) as refused:
        launch.refuse_idle_launch(cfg)
    advice = str(refused.value).partition("add ")[2].partition(". ")[0]
    assert advice.split() == [
        *("--distributed-init-method", "tcp://localhost:PORT", "--distributed-backend", "gloo"),
        *("--ddp-backend", "legacy_ddp"),
    ]


def test_without_the_refusal_such_a_start_trains_nothing_and_succeeds(toy, tmp_path):
    idle = toy("--max-update", 1, "--distributed-init-method", "tcp://localhost:9", without="unsafe_starts")
    if torch.cuda.device_count() == 0:
        assert idle.code == 0 and not (tmp_path / "save" / "checkpoint_last.pt").exists()


@pytest.mark.parametrize(
    ("limit", "reached"),
    [(("--max-epoch", 1), "epoch 1 of --max-epoch 1"), (("--max-update", 3), "update 3 of --max-update 3")],
)
def test_the_same_command_again_names_the_limit_and_trains_nothing(toy, tmp_path, limit, reached):
    ok(toy(*limit))
    last = tmp_path / "save" / "checkpoint_last.pt"
    done, written = updates_in(last), last.stat().st_mtime_ns
    again = ok(toy(*limit))
    assert f"has reached {reached}; raise {limit[0]} to go on" in again.output
    assert last.stat().st_mtime_ns == written
    ok(toy(limit[0], limit[1] + 1))
    assert updates_in(last) > done


def test_stock_trains_one_update_too_many(toy, tmp_path):
    ok(toy("--max-update", 3))
    ok(toy("--max-update", 3, without="silent_starts"))
    assert updates_in(tmp_path / "save" / "checkpoint_last.pt") == 4


def test_of_two_checkpoints_the_one_used_and_the_one_ignored_are_named(toy, tmp_path):
    ok(toy("--max-update", 1, save="other"))
    other, last = tmp_path / "other" / "checkpoint_last.pt", tmp_path / "save" / "checkpoint_last.pt"
    ok(toy("--max-update", 1, "--finetune-from-model", other))
    again = ok(toy("--max-update", 2, "--finetune-from-model", other))
    assert f"going on from {last}; --finetune-from-model {other} is ignored" in again.output
    restored = ok(toy("--max-update", 2, "--restore-file", other))
    assert f"starting from --restore-file {other}; {last} is there too and is ignored" in restored.output


def test_a_starting_point_that_is_missing_or_contradicted_ends_the_run(toy, tmp_path):
    assert "--restore-file /no.pt: no such file" in told(toy("--max-update", 1, "--restore-file", "/no.pt"))
    assert "--finetune-from-model /no.pt: no such file" in told(
        toy("--max-update", 1, "--finetune-from-model", "/no.pt")
    )
    ok(toy("--max-update", 1, save="other"))
    both = ("--finetune-from-model", tmp_path / "other" / "checkpoint_last.pt", "--reset-optimizer")
    assert "--finetune-from-model can not be set together" in told(toy("--max-update", 1, *both))
    stock = toy("--max-update", 1, "--restore-file", "/no.pt", without="silent_starts")
    assert ok(stock) and updates_in(tmp_path / "save" / "checkpoint_last.pt") == 1  # trained from scratch, not a word


# ---- what the user sees ----------------------------------------------------------------------------------------------


def test_a_real_process_says_one_line_and_no_warning_and_exits_with_1(tmp_path):
    command = [sys.executable, "-m", "fairseq_cli.train", "nothing", "--user-dir", TOY, "--task", "toy_copy", "--cpu"]
    flags = ["--arch", "toy_flat", "--optimizer", "adam", "--batch-size", "4", "--max-update", "1"]
    asked = ["--criterion", "cross_entropy", "--restore-file", "/no.pt", "--save-dir", tmp_path / "save"]
    finished = subprocess.run(
        [*map(str, [*command, *flags, *asked])], capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL
    )
    assert finished.returncode == 1
    assert finished.stderr == "error: --restore-file /no.pt: no such file; leave the flag out to train from scratch\n"


def test_generation_that_is_refused_leaves_no_output_file(tmp_path):
    results = tmp_path / "results"
    command = [
        sys.executable,
        "-m",
        "fairseq_cli.generate",
        "nothing",
        "--user-dir",
        TOY,
        "--task",
        "toy_copy",
        "--cpu",
    ]
    flags = ["--path", tmp_path / "no.pt", "--gen-subset", "test", "--batch-size", "4", "--results-path", results]
    finished = subprocess.run(
        [*map(str, [*command, *flags])], capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL
    )
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith(f"error: --path {tmp_path / 'no.pt'}: no such file")
    assert not list(results.iterdir())


def test_a_user_error_leaves_no_crash_dump_and_other_saves_name_their_file(tmp_path, monkeypatch):
    from fairseq.trainer import Trainer

    class Stub:
        should_save_checkpoint_on_current_rank = True

        class cfg:
            class checkpoint:
                write_checkpoints_asynchronously = False

        def state_dict(self):
            return {"extra_state": {}}

    path = tmp_path / "crash.pt"
    try:
        raise UserError("a.tsv:3: image: empty: write one")
    except UserError:
        assert Trainer.save_checkpoint(Stub(), str(path), {}) is None and not path.exists()
    assert Trainer.save_checkpoint(Stub(), str(path), {}) == str(path) and path.exists()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (UserError("--bpe-dir x: no such folder"), "--bpe-dir x: no such folder"),
        (BadRow("a.tsv", 3, "image", "empty", "write one"), "a.tsv:3: image: empty: write one"),
        (KeyError("bug"), None),
    ],
)
def test_what_a_loader_process_raises_is_told_the_same_way(error, shown):
    try:
        raise error
    except Exception:  # as torch's worker loop does it
        sent = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(Exception) as raised:
        sent.reraise()
    assert compat.user_message(raised.value) == shown


def test_what_a_spawned_rank_raises_is_told_the_same_way():
    text = "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  File ...\n"
    told = compat.user_message(RuntimeError(f"{text}ofa_plugin.errors.UserError: --bpe-dir x: no such folder\n"))
    assert told == "--bpe-dir x: no such folder"
    assert compat.user_message(RuntimeError(f"{text}KeyError: 3\n")) is None


def test_bugs_keep_their_traceback(capsys):
    assert compat.user_message(ValueError("x")) is None
    wrapped = Exception("cannot load")
    wrapped.__context__ = UserError("a.pt: no weights")
    assert compat.user_message(wrapped) == "a.pt: no weights"
    hidden = KeyError("bug while handling it")
    hidden.__context__ = UserError("a.pt: no weights")
    assert compat.user_message(hidden) is None


HYDRA_TOY = """
common: {user_dir: USER_DIR, cpu: true, log_format: none, reset_logging: true}
task: {_name: toy_copy, data: nothing}
model: {_name: toy_flat}
criterion: {_name: cross_entropy}
optimizer: {_name: adam}
lr_scheduler: {_name: fixed}
dataset: {batch_size: 4, num_workers: 0, ignore_unused_valid_subsets: true}
optimization: {lr: [0.01], max_update: 1}
distributed_training: {distributed_world_size: 1}
hydra: {run: {dir: .}, output_subdir: null}
"""


def test_under_hydra_a_mistake_is_one_line_which_stock_makes_a_traceback(tmp_path, monkeypatch):
    (tmp_path / "toy.yaml").write_text(HYDRA_TOY.replace("USER_DIR", str(TOY)))

    def train(*overrides, without=""):
        monkeypatch.setenv("WITHOUT", without)
        flags = ("--config-dir", tmp_path, "--config-name", "toy", f"checkpoint.save_dir={tmp_path / 'save'}")
        return run("hydra_train", *flags, *overrides, cwd=tmp_path, log=tmp_path / "log")

    ok(train())
    wrong = "checkpoint.restore_file=/no.pt"
    assert "--restore-file /no.pt: no such file" in told(train(wrong))
    stock = train(wrong, without="user_errors_of_hydra")
    assert stock.code == 1 and "Traceback" in stock.output and not stock.lines("error: ")
    assert "width: Value 'wide' of type 'str' could not be converted" in told(train("+model.width=wide"))


def test_hydra_shows_bugs_its_own_way(capsys):
    job = hydra.core.utils.JobReturn(overrides=["a=b"], status=hydra.core.utils.JobStatus.FAILED)
    job.return_value = KeyError("bug")
    with pytest.raises(KeyError, match="bug"):
        _ = job.return_value
    assert "Error executing job with overrides: ['a=b']" in capsys.readouterr().err
    job.status, job.return_value = hydra.core.utils.JobStatus.COMPLETED, 3
    assert job.return_value == 3


@pytest.mark.parametrize(("asked", "level"), [(None, 20), ("WARNING", 30)])
def test_interactive_logs_what_loglevel_says_where_stock_logs_everything(asked, level):
    code = (
        "import logging, fairseq_cli.interactive; stock = logging.getLogger().level; import ofa_plugin; "
        "print(stock, logging.getLogger().level)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LOGLEVEL"}
    environment |= {"PYTHONPATH": str(ROOT), **({"LOGLEVEL": asked} if asked else {})}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.stdout == f"10 {level}\n", finished.stderr[-2000:]  # 10 is DEBUG


@pytest.mark.parametrize(("message", "category"), compat.NOISE)
def test_filters_are_for_one_message_each(message, category):
    assert issubclass(category, Warning) and len(message) > 15 and re.compile(message)


def test_an_unknown_fairseq_is_told_once_with_the_tested_ones(monkeypatch, caplog):
    versions = {"fairseq": "0.13.0"}

    def version(name):
        if name not in versions:
            raise compat.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(compat, "version", version)
    compat._check_version()
    (record,) = caplog.records
    assert "fairseq 0.13.0" in record.message and "0.12.3.1 (fairseq-fixed)" in record.message
    versions["fairseq-fixed"] = "0.12.3.1"
    caplog.clear()
    compat._check_version()
    assert not caplog.records


def test_the_default_scorer_needs_no_c_extension(monkeypatch):
    scoring = fairseq.registry.REGISTRIES["scoring"]
    monkeypatch.setitem(scoring, "default", "bleu")
    monkeypatch.delitem(compat.SCORER_REGISTRY, "ofa", raising=False)
    compat.prefer_our_scorer()
    assert scoring["default"] == "bleu"
    monkeypatch.setitem(compat.SCORER_REGISTRY, "ofa", object)
    compat.prefer_our_scorer()
    assert scoring["default"] == "ofa"


def test_ofa_plugin_is_registered_where_fairseq_is_imported():
    ofa_plugin.register()
    assert "ofa" in fairseq.models.MODEL_REGISTRY and {"caption", "vqa_gen"} <= set(fairseq.tasks.TASK_REGISTRY)


def test_archives_are_read_from_memory_safe_positions(tmp_path):
    """The checksum pass leaves the file at its start, for torch to read."""
    with open(write(tmp_path / "a.pt"), "rb") as file:
        compat._check_archive(file, "a.pt")
        assert file.tell() == 0 and isinstance(torch.load(io.BytesIO(file.read()), weights_only=True), dict)
