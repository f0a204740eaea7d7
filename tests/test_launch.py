"""Forms of starting several processes: those that work as the messages spell them, and how the others end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import ofa_plugin
from ofa_plugin import compat, launch
from ofa_plugin.errors import UserError
from tests.helpers.stock import ROOT, ok, start

ofa_plugin.register()
FLAGS = (
    *("nothing", "--user-dir", str(ROOT / "tests" / "helpers" / "ofa_toy"), "--task", "toy_copy", "--arch", "toy_flat"),
    *("--cpu", "--criterion", "cross_entropy", "--optimizer", "adam", "--lr", "1e-2", "--batch-size", "4"),
    *("--no-epoch-checkpoints", "--num-workers", "0", "--log-format", "none", "--ignore-unused-valid-subsets"),
)
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def refusal(*flags: object, without_cpu: bool = False) -> str | None:
    """What a start with these flags is told, or None where it may go on."""
    words = ("data", "--arch", "transformer", *(() if without_cpu else ("--cpu",)), *map(str, flags))
    args = options.parse_args_and_arch(options.get_training_parser(), list(words))
    try:
        launch.refuse_idle_launch(convert_namespace_to_omegaconf(args))
    except UserError as error:
        return str(error)
    return None


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Starts one of two ranks of the toy with the flags of `CPU_LAUNCH`; `without` takes cures away."""
    running = []
    port = free_port()

    def started(rank: int, *flags: object, without: str = ""):
        monkeypatch.setenv("WITHOUT", without)
        words = launch.CPU_LAUNCH.replace("PORT", str(port)).split()
        values = {"N": "2", "R": str(rank)}
        running.append(
            start(
                *(
                    "train",
                    *FLAGS,
                    *(values.get(word, word) for word in words),
                    "--save-dir",
                    tmp_path / "save",
                    *flags,
                ),
                log=tmp_path / f"log{len(running)}",
            )
        )
        return running[-1]

    yield started
    for one in running:
        try:
            os.kill(one.child, signal.SIGKILL)
            os.waitpid(one.child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def until(log: Path, words: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not log.exists() or words not in log.read_text(errors="replace"):
        assert time.monotonic() < end, words
        time.sleep(0.05)


# ---- the flags of the messages ---------------------------------------------------------------------------------------


def test_the_flags_that_the_refusal_names_start_two_ranks(ranks, tmp_path):
    assert launch.CPU_LAUNCH in refusal("--distributed-world-size", 2)
    both = [ranks(rank, "--max-update", 2) for rank in (0, 1)]
    assert "training on 2 devices" in ok(both[0].wait()).output
    ok(both[1].wait())


def test_the_torchrun_command_that_the_refusal_names_starts_two_ranks(tmp_path, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launch.TORCHRUN_LAUNCH in refusal()
    monkeypatch.undo()
    given = shlex.join((*FLAGS, "--max-update", "2", "--save-dir", str(tmp_path / "save")))
    command = launch.TORCHRUN_LAUNCH.replace("N --no", "2 --no").replace("fairseq-train ...", f"fairseq-train {given}")
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)  # of the toy's
    finished = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "training on 2 devices" in finished.stdout + finished.stderr
    assert (tmp_path / "save" / "checkpoint_last.pt").exists()


GOOD = (
    *("--distributed-world-size", 2, "--distributed-rank", 1, "--distributed-no-spawn"),
    *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
)


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({}, (), None),
        ({}, (*GOOD, "--distributed-init-method", "tcp://localhost:9"), None),
        (TORCHRUN, (*GOOD, "--distributed-init-method", "env://"), None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, (), None),
        ({"SLURM_STEP_NUM_TASKS": "2"}, (*GOOD, "--distributed-init-method", "tcp://localhost:9"), None),
        # each on its own
        (TORCHRUN, (), "WORLD_SIZE=2 is set (torchrun)"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, (), "SLURM_STEP_NUM_TASKS=4 is set (srun)"),
        # nothing is trained
        ({}, ("--distributed-world-size", 2), "add --distributed-init-method tcp://localhost:PORT"),
        ({}, ("--distributed-init-method", "tcp://localhost:9"), "add --distributed-no-spawn"),
        (TORCHRUN, ("--distributed-world-size", 2), "add --distributed-init-method env:// --distributed-no-spawn"),
        # endless waiting
        ({}, (*GOOD, "--distributed-init-method", "tcp://a:9", "--distributed-rank", 2), "has ranks 0 to 1"),
        (TORCHRUN, (*GOOD, "--distributed-init-method", "env://", "--distributed-rank", 0), "--distributed-rank is 0"),
        (
            TORCHRUN,
            (*GOOD, "--distributed-init-method", "env://", "--distributed-world-size", 3),
            "--distributed-world-size is 3, but this is rank 1 of 2 of torchrun",
        ),
        (
            {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"},
            (*GOOD, "--distributed-init-method", "tcp://localhost:9"),
            "use env://",
        ),
    ],
)
def test_forms_of_starting_on_cpu(monkeypatch, environment, flags, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = refusal(*flags)
    assert said is None if words is None else words in said, said


def test_on_gpus_torchrun_needs_only_the_world_size(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert refusal("--distributed-world-size", 2, without_cpu=True) is None
    assert "add --distributed-world-size 2;" in refusal("--distributed-world-size", 1, without_cpu=True)


# ---- a rank that is gone ---------------------------------------------------------------------------------------------

ENDLESS = ("--max-update", 10**9, "--max-epoch", 10**9, "--no-save", "--disable-validation", "--log-format", "simple")


def test_a_rank_that_is_killed_ends_the_other_at_once_in_one_line(ranks, tmp_path):
    first, second = (ranks(rank, *ENDLESS) for rank in (0, 1))
    until(first.log, "begin training epoch 3")
    os.kill(second.child, signal.SIGKILL)
    start = time.monotonic()
    ended = first.wait()
    assert ended.code == 1 and time.monotonic() - start < 15
    assert "Traceback" not in ended.output
    assert re.search(r"^(\[rank0\]: )?error: another rank has ended; .* last checkpoint$", ended.output, re.MULTILINE)


def test_a_rank_that_hangs_is_waited_for_as_long_as_the_heartbeat_says(ranks, tmp_path):
    first, second = (ranks(rank, *ENDLESS, "--heartbeat-timeout", 4) for rank in (0, 1))
    until(first.log, "begin training epoch 3")
    os.kill(second.child, signal.SIGSTOP)
    start = time.monotonic()
    ended = first.wait()
    assert ended.code != 0 and 2 < time.monotonic() - start < 20
    assert "error: another rank has not answered for 4000 ms" in ended.output


def test_a_rank_that_never_comes_is_waited_for_as_long_as_the_heartbeat_says(ranks, tmp_path):
    first = ranks(0, "--max-update", 1, "--heartbeat-timeout", 2)
    ended = first.wait()
    assert ended.code == 1 and "error: only 1 of 2 ranks came within" in ended.output


def test_stock_waits_on_whatever_the_heartbeat_says(ranks):
    stock = ranks(0, "--max-update", 1, "--heartbeat-timeout", 1, without="endless_waiting")
    until(stock.log, "distributed init (rank 0)")
    time.sleep(8)
    assert os.waitpid(stock.child, os.WNOHANG) == (0, 0)


@pytest.mark.parametrize(
    ("torch_says", "user_reads"),
    [
        (
            "Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:152] timed out connecting: SO_ERROR: "
            "Connection refused, remote=[127.0.0.1]:34704$1",
            "another rank offers 127.0.0.1, where",
        ),
        ("Gloo connectFullMesh failed with [gloo/pair.h:311] Connect timeout [none]", "another rank cannot be reached"),
        (
            "[enforce fail at gloo/device.cc:84] ifa != nullptr. Unable to find address for: eth9",
            "IFNAME=eth9: no such",
        ),
        ("[gloo/unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation", "not answered for 6000 ms"),
        ("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:25993. This is", "another rank has ended"),
        ("[gloo/pair.cc:537] Read error [127.0.0.1]:41644: Connection reset by peer.", "another rank has ended"),
        ("Timed out after 7 seconds waiting for clients. 1/2 clients joined.", "only 1 of 2 ranks came within 7 s"),
        (
            "The client socket has timed out after 6000ms while trying to connect to (node1, 29804).",
            "no rank 0 answered at node1:29804 within 6000 ms",
        ),
        (
            "The server socket has failed to listen on any local network address. port: 29711, useIpv6: false, "
            "code: -98, name: EADDRINUSE, message: address already in use",
            "port 29711 is taken",
        ),
    ],
)
def test_what_torch_says_of_a_missing_rank_is_told_in_one_line(torch_says, user_reads):
    assert user_reads in compat.user_message(RuntimeError(torch_says))
    interrupted = KeyboardInterrupt()
    interrupted.__context__ = RuntimeError(torch_says)  # the heartbeat's signal arrives while gloo gives up
    assert user_reads in compat.user_message(interrupted)


def test_other_errors_keep_their_traceback():
    assert compat.user_message(RuntimeError("shape mismatch")) is None
    assert compat.user_message(ValueError("gloo: Connection closed by peer")) is None


@pytest.mark.parametrize("without", ["", "open_groups"])
def test_the_groups_of_ranks_are_closed_before_the_process_ends(tmp_path, without):
    """Left open, gloo's threads die with the process, which one time in eight ends it with code 134."""
    flags = (
        "--distributed-init-method",
        f"tcp://localhost:{free_port()}",
        "--distributed-no-spawn",
        "--max-update",
        "1",
    )
    flags += ("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--no-save", "--disable-validation")
    program = (
        "import atexit, sys, torch\n"
        "atexit.register(lambda: print('open at the end:', torch.distributed.is_initialized()))\n"
        "from fairseq_cli.train import cli_main\n"
        "cli_main()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, *FLAGS, *flags],
        env={**os.environ, "WITHOUT": without, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "done training" in finished.stdout, finished.stderr[-2000:]
    assert f"open at the end: {without == 'open_groups'}" in finished.stdout
