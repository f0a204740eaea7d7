"""Runs the stock entry points as a user would, each in a fork of this process, so that fairseq is imported once."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

import ofa_plugin
from ofa_plugin import compat, optim

ROOT = Path(__file__).resolve().parents[2]
USER_DIR = str(ROOT / "ofa_plugin")


@dataclass
class Finished:
    """How a run ended: its exit code, and all it printed."""

    code: int
    output: str

    def lines(self, prefix: str) -> list[str]:
        """The printed lines that start with `prefix`."""
        return [line for line in self.output.splitlines() if line.startswith(prefix)]


@dataclass
class Running:
    """A run under way."""

    child: int
    log: Path

    def wait(self) -> Finished:
        """Waits for its end."""
        _, status = os.waitpid(self.child, 0)
        return Finished(os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace"))


def run(entry: str, *arguments: object, cwd: Path | None = None, stdin: str = "", log: Path) -> Finished:
    """Runs `fairseq-<entry> arguments` and waits for it.

    Args:
        entry: train, validate, generate, interactive, hydra_train.
        arguments: the command line; each is turned into text.
        cwd: working directory.
        stdin: what is typed.
        log: file that takes what is printed.
    """
    return start(entry, *arguments, cwd=cwd, stdin=stdin, log=log).wait()


def run_ranks(
    entry: str, *arguments: object, log: Path, world: int = 2, backend: str = "legacy_ddp", prepare: str | None = None
) -> list[Finished]:
    """Runs `fairseq-<entry> arguments` on `world` ranks at once; rank r prints to `log` with r at its end."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    running = [
        start(
            *(entry, *arguments, "--distributed-world-size", world, "--distributed-rank", rank),
            *("--distributed-init-method", f"tcp://localhost:{port}", "--distributed-no-spawn"),
            *("--distributed-backend", "gloo", "--ddp-backend", backend),
            log=log.with_name(f"{log.name}{rank}"),
            prepare=prepare,
        )
        for rank in range(world)
    ]
    return [one.wait() for one in running]


def start(
    entry: str,
    *arguments: object,
    cwd: Path | None = None,
    stdin: str = "",
    log: Path,
    prepare: str | None = None,
) -> Running:
    """Starts `fairseq-<entry> arguments`; see `run`. `prepare` is a module to import in the new process first."""
    for module in ("fairseq_cli." + entry, "torch._dynamo"):  # in the parent, once; optimizers import the latter
        importlib.import_module(module)
    ofa_plugin.register()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            with tempfile.TemporaryFile() as typed:
                typed.write(stdin.encode())
                typed.seek(0)
                os.dup2(typed.fileno(), 0)
            sys.stdin = os.fdopen(0)
            sys.__stderr__ = sys.stderr
            _reset_logging()
            compat.checkpoint_checks.pop("vocabulary", None)  # of a task that a test of this process has set up
            optim.note_epoch_length(None)
            if cwd:
                os.chdir(cwd)
            if prepare:
                importlib.import_module(prepare)
            sys.argv = [f"fairseq-{entry}", *map(str, arguments)]
            importlib.import_module("fairseq_cli." + entry).cli_main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            try:
                sys.excepthook(*sys.exc_info())  # compat's: one line for a mistake of the user's
            except BaseException:
                traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return Running(child, log)


def _reset_logging() -> None:
    """pytest's handlers hold its own streams; the run must make its own."""
    import logging

    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s", level=logging.INFO, stream=sys.stdout
    )


def ok(finished: Finished) -> Finished:
    """The same run, after checking that it succeeded."""
    assert finished.code == 0, finished.output[-6000:]
    return finished


def error_of(finished: Finished) -> str:
    """The one line that a failed run says to its user, after checking that it is one, and no traceback."""
    assert finished.code != 0, finished.output[-3000:]
    assert "Traceback" not in finished.output, finished.output[-6000:]
    errors = finished.lines("error: ")
    assert len(errors) == 1, finished.output[-3000:]
    assert finished.output.rstrip().endswith(errors[0]), finished.output[-3000:]  # nothing follows, not even its rest
    return errors[0]


NANO = (
    *("--user-dir", USER_DIR, "--arch", "ofa_nano", "--cpu"),
    *("--criterion", "adjust_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
    *("--optimizer", "adam", "--lr", "1e-3", "--log-format", "json", "--log-interval", "1"),
    *("--no-epoch-checkpoints", "--patch-image-size", "64"),
)
"""Flags of a small training run; DATA, --task, vocabulary, batch size, limits and --save-dir come beside them."""
