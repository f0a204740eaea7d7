"""Starting a run: what is refused because stock would train wrongly, or not at all, and what a missing rank means.

`compat.py` asks here at every start; nothing of stock is replaced in this file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from typing import IO, Any

import torch

from .errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: a second run on the same folder is then not noticed
    fcntl = None

CPU_LAUNCH = (
    "--distributed-world-size N --distributed-rank R --distributed-init-method tcp://localhost:PORT "
    "--distributed-no-spawn --distributed-backend gloo --ddp-backend legacy_ddp"
)
"""The flags that start rank R of N on CPU, one command for each rank."""

TORCHRUN_LAUNCH = (
    "torchrun --nproc-per-node N --no-python bash -c 'exec fairseq-train ... --distributed-world-size $WORLD_SIZE "
    "--distributed-rank $RANK --distributed-init-method env:// --distributed-no-spawn --distributed-backend gloo "
    "--ddp-backend legacy_ddp'"
)
"""The same through torchrun, whose own store takes the place of an address: with tcp:// every rank waits for ever."""


def refuse_unsafe_start(cfg: Any) -> None:
    """Refuses flags with which stock trains wrongly, or not at all, without saying so.

    Raises:
        UserError: names the flags and what to use.
    """
    common, cpu = cfg.common, cfg.common.cpu or not torch.cuda.is_available()
    if common.amp:
        raise UserError("--amp divides the gradients by the loss scale twice; use --fp16 on a GPU, or leave it out")
    if cfg.checkpoint.write_checkpoints_asynchronously:
        raise UserError(
            "--write-checkpoints-asynchronously never writes checkpoint_last.pt, so that a restarted run would begin "
            "anew; leave it out"
        )
    frugal = common.memory_efficient_fp16 or common.memory_efficient_bf16 or common.fp16_no_flatten_grads
    if (common.fp16 or common.bf16) and cpu and not frugal:
        flag = "--fp16" if common.fp16 else "--bf16"
        raise UserError(f"{flag} needs a GPU; on CPU leave it out, or add --fp16-no-flatten-grads")
    if cpu and cfg.distributed_training.distributed_world_size > 1 and getattr(cfg.model, "sync_bn", False):
        raise UserError("--sync-bn works on GPUs only; leave it out: the ranks' statistics are averaged before use")


_held: dict[str, IO[str]] = {}
"""By name, the open files that keep other runs out of their folders."""


def hold_save_folder(folder: str) -> None:
    """Keeps other runs out of `--save-dir` until `release_save_folders`, or until this process ends, however it ends.

    Does nothing where the system or the file system knows no locks.

    Raises:
        UserError: another process trains into it; names its host and number.
    """
    path = os.path.join(os.path.realpath(folder), ".training")
    if fcntl is None or path in _held:
        return
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  open until the end
    except OSError:
        return  # stock has just tried to write here, and says what is wrong
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: loaders that outlive it hold nothing
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return
        raise UserError(
            f"--save-dir {folder}: {holder} is training into it; wait until that run has ended, or give another folder"
        ) from None
    if not (os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))):
        file.close()  # the run before has ended between the two lines, and has taken its file with it
        return hold_save_folder(folder)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[path] = file


def release_save_folders() -> None:
    """Lets other runs in again, and leaves no file behind."""
    while _held:
        path, file = _held.popitem()
        with contextlib.suppress(OSError):
            os.unlink(path)
        file.close()


def launched_processes() -> int:
    """How many processes torchrun, or another launcher that sets the same variables, has started; 1 without one."""
    launcher = {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    return int(os.environ.get("WORLD_SIZE", 1)) if launcher else 1


def one_process_on_cpu(cfg: Any) -> None:
    """`--cpu` beside several GPUs: stock's default is a process for each GPU, none of which works on the CPU."""
    launch, gpus = cfg.distributed_training, torch.cuda.device_count()
    alone = launch.distributed_init_method is None and launched_processes() == 1
    if cfg.common.cpu and alone and launch.distributed_world_size == gpus > 1:
        launch.distributed_world_size = 1


def refuse_idle_launch(cfg: Any) -> None:
    """Refuses the starts of several processes that train nothing, train N times the same, or wait for ever.

    Raises:
        UserError: names the flags that work.
    """
    launch, cpu = cfg.distributed_training, cfg.common.cpu or torch.cuda.device_count() == 0
    _refuse_separate_runs(launch, cpu)
    world, rank, method = launch.distributed_world_size, launch.distributed_rank, launch.distributed_init_method
    if method is not None and not 0 <= rank < world:
        raise UserError(f"--distributed-rank {rank}: --distributed-world-size {world} has ranks 0 to {world - 1}")
    if method is not None and launched_processes() > 1:
        _refuse_other_ranks_than_torchrun(launch)
    if not cpu or (world == 1 and method is None):
        return
    torchrun = launched_processes() > 1
    missing = [
        flag
        for flag, given in (
            (f"--distributed-init-method {'env://' if torchrun else 'tcp://localhost:PORT'}", method is not None),
            ("--distributed-no-spawn", launch.distributed_no_spawn),
            ("--distributed-backend gloo", launch.distributed_backend == "gloo"),
            ("--ddp-backend legacy_ddp", launch.ddp_backend in ("legacy_ddp", "no_c10d")),
        )
        if not given
    ]
    if missing:
        raise UserError(
            f"{world} processes on CPU: fairseq would train nothing with these flags; add {' '.join(missing)}. Start "
            f"{'them' if torchrun else 'each rank'} with {TORCHRUN_LAUNCH if torchrun else CPU_LAUNCH}"
        )


def _refuse_separate_runs(launch: Any, cpu: bool) -> None:
    """Several processes that each take themselves for the only one."""
    if launch.distributed_world_size > 1 or launch.distributed_init_method is not None:
        return
    torchrun, slurm = launched_processes(), int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if torchrun > 1:
        found, way = f"WORLD_SIZE={torchrun} is set (torchrun)", f"add --distributed-world-size {torchrun}"
        way, own = (f"on CPU start them with {TORCHRUN_LAUNCH}" if cpu else way), "WORLD_SIZE"
    elif slurm > 1:
        found, own = f"SLURM_STEP_NUM_TASKS={slurm} is set (srun)", "SLURM_STEP_NUM_TASKS"
        way = "start them as run_scripts/slurm.sbatch does"
    else:
        return
    raise UserError(
        f"{found}, but --distributed-world-size is 1, so that {max(torchrun, slurm)} separate runs would write into "
        f"one --save-dir; {way}; for separate runs on purpose unset {own}"
    )


def _refuse_other_ranks_than_torchrun(launch: Any) -> None:
    """What stock takes from the flags once --distributed-init-method is given must be what torchrun has started."""
    world, rank = launched_processes(), int(os.environ["RANK"])
    for flag, given, started in (
        ("--distributed-world-size", launch.distributed_world_size, world),
        ("--distributed-rank", launch.distributed_rank, rank),
    ):
        if given != started:
            raise UserError(f"{flag} is {given}, but this is rank {rank} of {world} of torchrun; use {TORCHRUN_LAUNCH}")
    own_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if own_store and launch.distributed_init_method != "env://":
        raise UserError(
            f"--distributed-init-method {launch.distributed_init_method}: every rank of torchrun would wait for it for "
            "ever; use env://"
        )


_GONE = (
    (
        r"Gloo connectFullMesh failed.*remote=\[(?P<address>[^\]]+)\]",
        "another rank offers {address}, where this one cannot reach it; on every host set GLOO_SOCKET_IFNAME to the "
        "interface that leads to the others (`ip route get HOST` names it)",
    ),
    (
        r"Gloo connectFullMesh failed",
        "another rank cannot be reached; on every host set GLOO_SOCKET_IFNAME to the interface that leads to the "
        "others (`ip route get HOST` names it)",
    ),
    (
        r"gloo.*Unable to find address for: (?P<name>\S+)",
        "GLOO_SOCKET_IFNAME={name}: no such interface on this host, or one without an address; `ip addr` lists them",
    ),
    (
        r"gloo.*Timed out waiting (?P<wait>\d+)ms",
        "another rank has not answered for {wait} ms: it hangs, or its host is gone. Stop all ranks and start them "
        "again, they go on from the last checkpoint. --heartbeat-timeout SECONDS waits longer or shorter",
    ),
    (
        r"gloo.*(?:(?:closed|reset) by peer|Broken pipe)",
        "another rank has ended; its own output says why. Start all ranks again, they go on from the last checkpoint",
    ),
    (
        r"Timed out after (?P<wait>\d+) seconds waiting for clients\. (?P<come>\d+)/(?P<all>\d+)",
        "only {come} of {all} ranks came within {wait} s; start the others, each with its own --distributed-rank and "
        "all with the same --distributed-init-method",
    ),
    (
        r"client socket has timed out after (?P<wait>\d+)ms.*connect to \((?P<host>[^,]+), (?P<port>\d+)\)",
        "no rank 0 answered at {host}:{port} within {wait} ms; start it on that host, with the same "
        "--distributed-init-method",
    ),
    (
        r"server socket has failed to listen.*port: (?P<port>\d+).*EADDRINUSE",
        "port {port} is taken, by another rank 0 or another program; give each rank its own --distributed-rank and "
        "each run its own port",
    ),
)
"""What torch says of a rank that has ended, hangs or never came, and what the user reads."""


def missing_rank(error: BaseException | None) -> str | None:
    """What to do about another rank that is gone, or None where `error` is about something else."""
    while error is not None:
        for pattern, advice in _GONE if isinstance(error, RuntimeError) else ():
            found = re.search(pattern, str(error), flags=re.DOTALL)
            if found:
                return advice.format(**found.groupdict())
        error = error.__cause__ or error.__context__
    return None
