"""Tuning less than everything: adapters, prefix prompts, LoRA, BitFit, and which weights a model trains.

Adapters and prompts have the official names and shapes; LoRA (Hu et al. 2021) is not in the official code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UserError
from .config import LORA_LAYERS, OFAConfig

logger = logging.getLogger(__name__)

BACKBONE = "encoder.embed_images."
"""How the names of the image backbone's weights begin."""

PROMPT_DROPOUT = 0.2  # on the whole prefix, as official

Prefix = tuple[Tensor, Tensor]
"""Keys and values in front of a layer's own: float[1 or B, H, P, D / H] each."""

KINDS = {"adapter": ".adapter.", "prompts": "_prompt_encoder.", "LoRA": ".lora_"}
"""The weights that a method adds, by a part of their names; a checkpoint has all of a kind, or none."""


class Adapter(nn.Module):
    """A bottleneck with a residual: x + up(relu(down(x))).

    The last layer starts at zero, so that the model starts as it was.

    Args:
        width: D.
        inner: `--adapter-dim`.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.down_proj = nn.Linear(width, inner)
        self.up_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] to the same shape."""
        return x + self.up_proj(F.relu(self.down_proj(x)))


class PromptEncoder(nn.Module):
    """The prefix of every layer of a stack: keys and values that each position sees in front of the text's own.

    Args:
        length: P.
        layers: of the stack.
        heads: H.
        width: D.
        inner: width of the projection from D to all keys and values; None: they are a table of their own.
    """

    def __init__(self, length: int, layers: int, heads: int, width: int, inner: int | None):
        super().__init__()
        self.layers, self.heads = layers, heads
        size = 2 * layers * width
        self.embedding = nn.Embedding(length, size if inner is None else width)
        self.trans = None
        if inner is not None:
            self.trans = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, size))

    def forward(self, rows: int) -> list[Prefix]:
        """The prefixes of all layers, float[1, H, P, D / H] each; in training float[rows, ...], dropped out by row."""
        table = self.embedding.weight if self.trans is None else self.trans(self.embedding.weight)
        parts = table.view(1, len(table), 2 * self.layers, self.heads, -1)
        if self.training:
            parts = F.dropout(parts.expand(rows, -1, -1, -1, -1), PROMPT_DROPOUT)
        parts = parts.permute(2, 0, 3, 1, 4)  # slot 2l is the key of layer l, 2l + 1 its value
        return list(zip(parts[::2], parts[1::2], strict=True))


class LoRALinear(nn.Linear):
    """A linear layer whose matrix W counts as W + alpha / rank * B A; B starts at zero.

    Args:
        layer: whose sizes it takes.
        rank: of B A.
        alpha: see above.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        super().__init__(layer.in_features, layer.out_features)
        self.factor = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.normal_(self.lora_a, std=layer.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., in_features] to float[..., out_features]."""
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.factor * self.lora_b)

    def whole(self) -> Tensor:
        """The matrix that the layer stands for, float[out_features, in_features]."""
        return folded(self.weight, self.lora_a, self.lora_b, self.factor)


def folded(weight: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """W + factor * B A, computed in 64 bits, in the type of W."""
    return (weight.double() + factor * (b.double() @ a.double())).to(weight.dtype)


def prompt_encoder(cfg: OFAConfig, side: str) -> PromptEncoder | None:
    """That of the encoder or the decoder (`side`), or None where `--encoder-prompt` or `--decoder-prompt` is off."""
    if not getattr(cfg, f"{side}_prompt"):
        return None
    layers, heads, width, length, projected, inner = (
        getattr(cfg, f"{side}_{name}")
        for name in ("layers", "attention_heads", "embed_dim", "prompt_length", "prompt_projection", "prompt_dim")
    )
    return PromptEncoder(length, layers, heads, width, (inner or 2 * cfg.encoder_embed_dim) if projected else None)


def put_lora(model: nn.Module, cfg: OFAConfig) -> None:
    """Exchanges the linear layers of the transformer that `--lora-layers` names, in place."""
    wanted = {LORA_LAYERS[name] for name in lora_layers(cfg)}
    for stack in (model.encoder, model.decoder):
        for module in list(stack.layers.modules()):
            for name, child in list(module.named_children()):
                if name in wanted and type(child) is nn.Linear:
                    setattr(module, name, LoRALinear(child, cfg.lora, cfg.lora_alpha))


def lora_layers(cfg: OFAConfig) -> list[str]:
    """The names in `--lora-layers`, as they stand there."""
    return [name.strip() for name in cfg.lora_layers.split(",") if name.strip()]


def start(model: nn.Module) -> None:
    """Sets what must be zero for the model to start as the one without adapters; LoRA's is zero already."""
    for module in model.modules():
        if isinstance(module, Adapter):
            nn.init.zeros_(module.up_proj.weight)


def freeze(model: nn.Module, cfg: OFAConfig) -> None:
    """Sets `requires_grad` of every weight by the flags.

    A method that adds weights trains those alone, BitFit every bias of the transformer alone; several together train
    what each of them does. The other flags freeze more.
    """
    added = [part for kind, part in KINDS.items() if kind in methods(cfg)]
    if added or cfg.bitfit:
        for name, parameter in model.named_parameters():
            bias = cfg.bitfit and name.endswith("bias") and not name.startswith(BACKBONE)
            parameter.requires_grad_(bias or any(part in name for part in added))
    if cfg.freeze_encoder_embedding or cfg.freeze_decoder_embedding:
        model.encoder.embed_tokens.requires_grad_(False)
    if cfg.freeze_resnet_weights:
        model.encoder.embed_images.requires_grad_(False)
    for stack, frozen in ((model.encoder, cfg.freeze_encoder), (model.decoder, cfg.freeze_decoder)):
        if frozen:
            stack.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("the --freeze flags leave nothing to train: leave one of them out")
    if cfg.save_tuned_only and all(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("--save-tuned-only: every weight is trained; add --lora, --adapter or --bitfit, or freeze")


def methods(cfg: OFAConfig) -> dict[str, str]:
    """The methods that are on, by their kind, and each in words."""
    found = {}
    if cfg.lora:
        found["LoRA"] = f"LoRA rank {cfg.lora} ({', '.join(lora_layers(cfg))})"
    if cfg.adapter:
        found["adapter"] = f"adapters of {cfg.adapter_dim}"
    prompts = [f"{side} {getattr(cfg, f'{side}_prompt_length')}" for side in SIDES if getattr(cfg, f"{side}_prompt")]
    if prompts:
        found["prompts"] = f"prompts ({', '.join(prompts)})"
    if cfg.bitfit:
        found["BitFit"] = "BitFit (biases)"
    return found


SIDES = ("encoder", "decoder")


def describe(model: nn.Module, cfg: OFAConfig) -> str | None:
    """How many weights a model trains, in one line; None where it trains all of them."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trained == total:
        return None
    flags = ("freeze_encoder_embedding", "freeze_decoder_embedding", "freeze_resnet_weights", "freeze_encoder")
    frozen = [f"--{flag.replace('_', '-')}" for flag in (*flags, "freeze_decoder") if getattr(cfg, flag)]
    how = ", ".join([*methods(cfg).values(), *frozen])
    return f"trains {_millions(trained)} of {_millions(total)} parameters ({100 * trained / total:.2g} %): {how}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


def tuned_names(model: nn.Module) -> list[str]:
    """The names in the state dict of all that training may change: trained weights, moving statistics."""
    state = model.state_dict(keep_vars=True)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    backbone = model.encoder.embed_images
    moves = any(p.requires_grad for p in backbone.parameters())
    moving = {id(b) for m in backbone.modules() if moves for b in _statistics(m)}
    return [name for name, value in state.items() if id(value) in trained or id(value) in moving]


def _statistics(module: nn.Module) -> Iterable[Tensor]:
    return module.buffers(recurse=False) if isinstance(module, nn.modules.batchnorm._NormBase) else ()


def start_fresh(own: Mapping[str, Tensor], state: dict[str, Tensor], quiet: bool = False) -> None:
    """Completes the state dict of a base model, in place, by the weights that tuning adds, as the model has them.

    Args:
        own: the model's state dict.
        state: weights by name; without any of a kind, or with all.
        quiet: log nothing.
    """
    for kind, part in KINDS.items():
        names = [name for name in own if part in name]
        if names and not any(name in state for name in names):
            state.update({name: own[name].clone() for name in names})
            if not quiet:
                size = sum(own[name].numel() for name in names)
                logger.info("%s: %d weights that the checkpoint lacks (%s numbers) start fresh", kind, len(names), size)


def fold_lora(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """A state dict without LoRA, whose matrices do the same; `factor` is alpha / rank."""
    found = {name: value for name, value in state.items() if KINDS["LoRA"] not in name}
    for name, a in state.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            found[f"{layer}.weight"] = folded(found[f"{layer}.weight"], a, state[f"{layer}.lora_b"], factor)
    return found
