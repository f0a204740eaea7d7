"""`--optimizer muon`: Muon for the matrices of linear layers, AdamW for everything else.

Muon (Jordan et al. 2024) moves a matrix along its momentum with all singular values made equal, so that directions
which seldom have a gradient, such as those in which attention learns to find a word's patch, are learned as fast as the
others. Steps have the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training"), so one `--lr` serves both
and `--muon-lr-scale` says by how much the matrices go ahead.
"""

# no `from __future__ import annotations`: fairseq's parser needs the configuration's types as types, not as text
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  fairseq's parser reads these forms only

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import distributed, nn

from .errors import UserError
from .precision import computes_bf16

NS_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5, chosen by Jordan et al. for their slope at 0; the limit is not 1 but around it."""


@dataclass
class MuonConfig(FairseqDataclass):
    """Options of `--optimizer muon`; those of AdamW as `--optimizer adam` has them."""

    muon_lr_scale: float = field(default=1.0, metadata={"help": "the rate of the matrices is so many times --lr"})
    muon_momentum: float = field(default=0.95, metadata={"help": "momentum of the matrices"})
    adam_betas: Any = field(default=(0.9, 0.999), metadata={"help": "betas of AdamW, for all that is no matrix"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon of AdamW"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay of both"})
    lr: List[float] = II("optimization.lr")  # noqa: UP006


def mark_matrices(model: nn.Module) -> None:
    """Notes on the weights of linear layers what they are: fairseq hands optimisers parameters without names.

    The output projection, which has no offsets, is the token matrix: a table.
    """
    for name, parameter in model.named_parameters():  # every one, so that a copy without its mark is known as such
        parameter.is_matrix = name.endswith((".lora_a", ".lora_b"))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.weight.is_matrix = True


class Muon(torch.optim.Optimizer):
    """Muon, matrices of one shape together: on small ones most of the time of torch's own goes into calling.

    In data-parallel training, whose processes hold the same weights and gradients, each works on a part of them.

    Args:
        params: matrices.
        lr: the rate; a step's root mean square is 0.2 of it, as AdamW's.
        momentum: of the gradients, looked ahead (Nesterov).
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ns_steps": NS_STEPS})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((min(parameter.shape), max(parameter.shape)), []).append(parameter)
            for (_, longer), parameters in alike.items():
                self._move(parameters, 0.2 * longer**0.5 * group["lr"], group)

    def _move(self, parameters: list[nn.Parameter], length: float, group: dict[str, Any]) -> None:
        """Moves matrices of one shape, or its transpose, each by `length` times an orthogonal one."""
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        steps = orthogonal_together(torch.stack([_wide(step) for step in ahead]), group["ns_steps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.add_(step if step.shape == parameter.shape else step.t(), alpha=-length)


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()


def orthogonal(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """All singular values brought near 1 (0.7 to 1.2) by Newton-Schulz iterations of the fifth degree (Jordan et al.).

    In 16 bits where the device multiplies in them: more are not needed.

    Args:
        matrices: float[N, r, c], r <= c.
        steps: iterations.

    Returns:
        the same shape and type.
    """
    x = matrices.to(torch.bfloat16 if computes_bf16(matrices.device.type) else matrices.dtype)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    linear, cubic, quintic = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.to(matrices.dtype)


def orthogonal_together(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """`orthogonal` of what all processes hold alike: each computes its share, and all have the whole.

    Args:
        matrices: float[N, r, c], r <= c, the same in every process of the default group, if there is one.
        steps: iterations.

    Returns:
        the same shape and type.
    """
    world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if len(matrices) < world or world == 1:
        return orthogonal(matrices, steps)
    share = math.ceil(len(matrices) / world)
    own = matrices[distributed.get_rank() * share :][:share]
    found = matrices.new_zeros(share, *matrices.shape[1:])
    found[: len(own)] = orthogonal(own, steps)
    every = matrices.new_empty(world * share, *matrices.shape[1:])
    distributed.all_gather_into_tensor(every, found)
    return every[: len(matrices)]


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one; every parameter group is one of theirs.

    Args:
        matrices, others: the parameters of each.
        options: of each.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], *options: dict[str, Any]):
        muon, adam = options
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, **muon))
        if others:
            self.parts.append(torch.optim.AdamW(others, **adam))
        # the same dicts, so that a rate that is set here is theirs
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of both."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Theirs."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of an optimiser of the same parameters."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


@register_optimizer("muon", dataclass=MuonConfig)
class FairseqMuon(FairseqOptimizer):
    """`--optimizer muon`.

    Raises:
        UserError: fairseq has merged all parameters into one.
    """

    def __init__(self, cfg: MuonConfig, params: Iterable[nn.Parameter]):
        super().__init__(cfg)
        params = list(params)
        matrices = [p for p in params if getattr(p, "is_matrix", False)]
        others = [p for p in params if not getattr(p, "is_matrix", False)]
        if not all(hasattr(p, "is_matrix") for p in params):
            raise UserError(
                "--optimizer muon does not go with --fp16 and --bf16, whose copies of the weights do not say which are "
                "matrices: compute in 16 bits with --autocast bf16 (or fp16), or take --optimizer adam"
            )
        lr, decay = cfg.lr[0], cfg.weight_decay
        betas = cfg.adam_betas if not isinstance(cfg.adam_betas, str) else _pair(cfg.adam_betas)
        self._optimizer = MuonAdamW(
            matrices,
            others,
            {"lr": lr, "momentum": cfg.muon_momentum, "weight_decay": decay},
            {"lr": lr, "betas": tuple(betas), "eps": cfg.adam_eps, "weight_decay": decay},
        )

    def get_lr(self) -> float:
        """The rate of all that is no matrix: what a scheduler sets."""
        first = self.param_groups[0]
        return first["lr"] / self.cfg.muon_lr_scale if "ns_steps" in first else first["lr"]

    def set_lr(self, lr: float) -> None:
        """Sets it, and the matrices' in proportion."""
        for group in self.param_groups:
            group["lr"] = lr * self.cfg.muon_lr_scale if "ns_steps" in group else lr

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """What a resumed run sets anew: the rate."""
        return {"lr": self.cfg.lr[0]}


def _pair(text: str) -> tuple[float, float]:
    """`"(0.9, 0.98)"` as two numbers."""
    try:
        first, second = (float(part) for part in text.strip("()[] ").split(","))
    except ValueError:
        raise UserError(f"--adam-betas {text}: two numbers, as in '(0.9, 0.98)'") from None
    return first, second
