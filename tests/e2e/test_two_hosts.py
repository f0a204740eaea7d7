"""Two hosts: network namespaces joined by a cable, a rank in each, started by a run script as a user would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import World
from tests.helpers.stock import ROOT

pytestmark = pytest.mark.slow
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NO_NAME_SERVER = {"RES_OPTIONS": "timeout:1 attempts:1"}  # none can be reached from the namespaces: do not wait for it
FLAGS = ("--max-update", "6", "--batch-size", "8", "--dropout", "0", "--num-workers", "0", "--disable-validation")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces that see nothing but each other; their interfaces are named host<number>."""
    if shutil.which("ip") is None:
        pytest.skip("`ip` is absent: install iproute2")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    names = f"ofa{os.getpid()}a", f"ofa{os.getpid()}b"
    made = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            made.append(name)
        ip("link", "add", "host0", "netns", names[0], "type", "veth", "peer", "name", "host1", "netns", names[1])
        for number, (name, address) in enumerate(zip(names, ADDRESSES, strict=True)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"host{number}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"host{number}", "up")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


def start(world: World, save: Path, *flags: str, host: str | None = None, **variables: str) -> subprocess.Popen:
    """`run_scripts/caption.sh train nano`, on a host or here."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"BPE_DIR": str(world.root / "bpe"), "SAVE": str(save), **NO_NAME_SERVER, **variables}
    command = ["bash", str(ROOT / "run_scripts" / "caption.sh"), "train", "nano", str(world.root / "caption"), *flags]
    return subprocess.Popen(
        [*(("ip", "netns", "exec", host) if host else ()), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*running: subprocess.Popen) -> list[str]:
    """What each of them printed; all must have succeeded."""
    printed = [one.communicate(timeout=300) for one in running]
    for one, (out, errors) in zip(running, printed, strict=True):
        assert one.returncode == 0, out[-1500:] + errors[-3000:]
    return [out for out, _ in printed]


def test_two_hosts_end_with_the_parameters_of_two_ranks_on_one(world, hosts, tmp_path):
    finish(start(world, tmp_path / "one", *FLAGS, PROCS="2"))
    nodes = [{"PROCS": "1", "NODES": "2", "NODE_RANK": str(rank), "MASTER": ADDRESSES[0]} for rank in (0, 1)]
    running = [
        start(world, tmp_path / "two", *FLAGS, host=host, **node) for host, node in zip(hosts, nodes, strict=True)
    ]
    first, second = finish(*running)
    assert "training on 2 devices" in first and "num_updates 6" in first
    assert "initialized host" in second and "as rank 1" in second
    one, two = (
        torch.load(tmp_path / save / "checkpoint_last.pt", weights_only=True)["model"] for save in ("one", "two")
    )
    assert one.keys() == two.keys() and len(one) > 100
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_the_interface_gloo_offers_the_other_host_its_own_loopback(world, hosts, tmp_path):
    """The commands that the script prints, less what it says about the interface; both ranks end and name the cure."""
    running = []
    for rank, host in enumerate(hosts):
        node = {"PROCS": "1", "NODES": "2", "NODE_RANK": str(rank), "MASTER": ADDRESSES[0], "DRY": "1"}
        [printed] = finish(start(world, tmp_path / "save", *FLAGS, "--heartbeat-timeout", "8", host=host, **node))
        assert f"GLOO_SOCKET_IFNAME=host{rank} " in printed
        bare = printed.replace(f"GLOO_SOCKET_IFNAME=host{rank} ", "")
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, "bash", "-c", bare],
                env={**os.environ, **NO_NAME_SERVER},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [one.communicate(timeout=200)[1] for one in running]
    assert all(one.returncode for one in running)
    for said in errors:  # gloo names the address or not, depending on whether it is refused there or waits for itself
        assert re.search(r"error: another rank (offers 127.0.0.1|cannot be reached).* set GLOO_SOCKET_IFNAME", said), (
            said
        )
