"""What ranks agree on, in two processes of gloo."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fairseq.distributed import ModuleProxyWrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ofa_plugin.ranks import average_statistics
from tests.helpers.small_model import build_small, load_case, net_input


def on_two_ranks(folder: Path, work: Callable[[int], None]) -> None:
    """Runs `work(rank)` in two forked processes that are a process group."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
                work(rank)
                code = 0
            except BaseException:
                (folder / f"error{rank}").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0], "\n".join(file.read_text() for file in sorted(folder.glob("error*")))


def test_statistics_become_the_mean_of_both(tmp_path):
    def work(rank: int) -> None:
        models = [nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(2)), nn.Linear(2, 2), nn.BatchNorm1d(1)]
        for number, norm in enumerate([models[0][0], models[0][2], models[2]]):
            norm.running_mean.fill_(10 * number + rank)
            norm.running_var.fill_(1 + 2 * rank)
        average_statistics(models, dist.group.WORLD)
        for number, norm in enumerate([models[0][0], models[0][2], models[2]]):
            assert (norm.running_mean == 10 * number + 0.5).all() and (norm.running_var == 2).all()
        average_statistics([nn.Linear(2, 2)], dist.group.WORLD)  # nothing to do, and nothing to wait for

    on_two_ranks(tmp_path, work)


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_ranks_with_other_kinds_of_batches_train_together(tmp_path, checkpoint_activations):
    """Pictures and text on one rank, text and codes on the other, through torch's own data-parallel wrapper."""
    case = net_input(load_case("v_base"))
    text = {name: value for name, value in case.items() if not name.startswith("patch")}
    codes = {**text, "code_masks": torch.tensor([True, True])}
    mixtures = [{"v1": case, "v2": text}, {"v1": text, "v2": codes}]
    flags = {"resnet_type": "resnet_nano", "checkpoint_activations": checkpoint_activations}
    model = build_small(recipe=None, **flags)[0].double().train()
    mixtures = [
        {name: {k: v.double() if v.is_floating_point() else v for k, v in part.items()} for name, part in parts.items()}
        for parts in mixtures
    ]
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(run: nn.Module, rank: int) -> torch.Tensor:
        return sum(x.square().mean() for x, _ in run(parts=mixtures[rank]).values())

    for rank in range(2):  # in the end the mean of both, as data-parallel training has it
        (loss(model, rank) / 2).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}

    def work(rank: int) -> None:
        model.zero_grad()
        model.load_state_dict(start)
        wrapped = DistributedDataParallel(model)  # which must live until the backward pass is over
        assert ModuleProxyWrapper(wrapped).takes_logits_at  # or the losses would compute those of padding
        loss(wrapped, rank).backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    on_two_ranks(tmp_path, work)
