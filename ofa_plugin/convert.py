"""Untrusted checkpoints to safetensors and JSON, in a child process that may do little else: `ofa convert`.

The child reads with torch's weights_only reader and the plug-in's own checks, so nothing of the file runs. Should that
ever be got around, the child has a budget of memory, processor time and file size, opens no connection, starts no
program, and writes nowhere but in its own folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SECONDS = 600  # of processor time
BESIDE = 6 << 30  # bytes of address space beside five times the file: torch and fairseq themselves
REFUSED = ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "pty.", "ctypes.")
"""Beginnings of the names of events (docs.python.org, audit events) that the child does not survive."""


def convert(source: Path, out: Path, force: bool = False) -> dict[str, Any]:
    """Writes `model.safetensors` and `config.json` into the folder `out`, both or none.

    Returns:
        What the child says: number of tensors, of parameters, the averaged weights left out.

    Raises:
        UserError: safetensors is missing, the file is not there, OUT has such files, or the child refuses.
    """
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise UserError("ofa convert needs safetensors: pip install 'ofa-plugin[export]'") from None
    if not source.is_file():
        raise UserError(f"{source}: no such file: give a checkpoint")
    there = [out / name for name in (WEIGHTS, CONFIG) if (out / name).exists()]
    if there and not force:
        raise UserError(f"{there[0]}: already there; --force replaces it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".convert.", dir=out)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror or error}: give a folder that can be written") from error
    try:
        said = _in_a_child(source, Path(folder))
        for name in (WEIGHTS, CONFIG):
            os.replace(Path(folder) / name, out / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return said


def _in_a_child(source: Path, folder: Path) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "TMPDIR": str(folder), "OFA_CACHE": str(folder)}
    package = str(Path(__file__).resolve().parents[1])
    code = f"import sys; sys.path.insert(0, {package!r}); from ofa_plugin.convert import child; sys.exit(child())"
    command = (
        [sys.executable, "-B", "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-B", "-c", code]
    )
    try:
        finished = subprocess.run(
            [*command, str(source.resolve()), str(folder.resolve())],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=4 * SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{source}: not converted within {4 * SECONDS} s: take a smaller file") from None
    lines = finished.stdout.strip().splitlines()
    with contextlib.suppress(ValueError, IndexError):
        said = json.loads(lines[-1])
        if finished.returncode == 0 and "tensors" in said:
            return said
        if "error" in said:
            raise UserError(str(said["error"]))
    last = (finished.stderr.strip().splitlines() or ["it said nothing"])[-1]
    why = f"signal {-finished.returncode}" if finished.returncode < 0 else f"exit code {finished.returncode}"
    raise UserError(f"{source}: the child that converts it ended with {why} ({last[:200]}): nothing was written")


# In the child ---------------------------------------------------------------------------------------------------------


def child() -> int:
    """The child's main program: IN and FOLDER are its arguments; its last line is JSON."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    import fairseq  # noqa: F401  before the limits: libraries are read, not the file
    import safetensors.torch

    import ofa_plugin

    ofa_plugin.register()
    from fairseq import checkpoint_utils

    limit(source.stat().st_size)
    forbid(folder)
    try:
        with open(source, "rb") as file:
            state = checkpoint_utils.torch.load(file, map_location="cpu")
        weights, tied, left_out = tensors_of(state, str(source))
        config = {"settings": _plain(_settings(state)), "tied": tied, "left_out": left_out, "format": "ofa-plugin 1"}
        safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt", **tied})
        text = json.dumps(config, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
        (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    except UserError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    except MemoryError:
        print(json.dumps({"error": f"{source}: needs more memory than its size allows for: refused"}))
        return 1
    parameters = sum(tensor.numel() for tensor in weights.values())
    print(json.dumps({"tensors": len(weights), "tied": len(tied), "parameters": parameters, "left_out": left_out}))
    return 0


def limit(size: int) -> None:
    """Sets the budgets for reading a file of so many bytes."""
    limits = {
        resource.RLIMIT_AS: _used() + 5 * size + BESIDE,
        resource.RLIMIT_CPU: SECONDS,
        resource.RLIMIT_FSIZE: 2 * size + (1 << 24),
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def forbid(folder: Path) -> None:
    """From here on the process opens no connection, starts no program, and writes below one folder alone.

    An audit hook cannot be taken back, whatever code runs. It is the second line: the first is that no code of the file
    runs at all.
    """
    root = str(folder.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED):
            os._exit(77)
        if event == "open":
            path, mode, flags = (*arguments, None, None)[:3]
            writes = any(sign in mode for sign in "wax+") if isinstance(mode, str) else False
            writes = writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0)
            if writes and not (isinstance(path, int) or _below(path, root)):
                os._exit(77)
        elif event in ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "os.chmod", "os.link", "os.symlink"):
            if not _below(arguments[0], root):
                os._exit(77)

    sys.addaudithook(hook)


def _below(path: Any, root: str) -> bool:
    return os.path.realpath(os.fsdecode(path)).startswith(root + os.sep)


def _used() -> int:
    """Bytes of address space that this process has already."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def tensors_of(state: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The weights of a checkpoint, each memory once.

    Args:
        state: a fairseq checkpoint, or a plain state dict.
        name: of the file, for messages.

    Returns:
        Weights by name; which other name each tied one is to be read under; what is not weights and was left out.

    Raises:
        UserError: there are no weights, or something else is among them.
    """
    import torch

    weights = state.get("model", state)
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{name}: holds no weights: give a checkpoint of fairseq, or a state dict")
    wrong = next(
        (key for key, value in weights.items() if not torch.is_tensor(value) or not isinstance(key, str)), None
    )
    if wrong is not None:
        raise UserError(f"{name}: {wrong!r} is no tensor: give a checkpoint of fairseq, or a state dict")
    first: dict[tuple[Any, ...], str] = {}
    kept, tied = {}, {}
    for key, value in weights.items():
        memory = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        other = first.setdefault(memory, key) if value.numel() else key
        if other != key:
            tied[key] = other
        else:
            kept[key] = value.detach().contiguous().clone()
    left_out = sorted(key for key in state if key not in ("model", "cfg", "args")) if weights is not state else []
    return kept, tied, left_out


def _settings(state: Mapping[str, Any]) -> Any:
    return state.get("cfg") or state.get("args") or {}


def _plain(node: Any) -> Any:
    """Settings as JSON can hold them; what it has no form for becomes text."""
    import omegaconf

    if omegaconf.OmegaConf.is_config(node):
        node = omegaconf.OmegaConf.to_container(node, resolve=False)
    if isinstance(node, argparse.Namespace):
        node = vars(node)
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple, set)):
        return [_plain(value) for value in node]
    if node is None or isinstance(node, (bool, int, str)):
        return node
    if isinstance(node, float):
        return node if math.isfinite(node) else str(node)
    return str(node)
