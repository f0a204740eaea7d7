"""The three ResNet stages that turn pixels into patch features, 16 pixels a patch (He et al. 2016, variant 1.5)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .layers import drop_path

RESNETS: dict[str, tuple[tuple[int, int, int], int]] = {
    # blocks of the three stages, channels of the stem; official resnet18 has bottlenecks, and its resnet34 is resnet50
    "resnet18": ((2, 2, 2), 64),
    "resnet34": ((3, 4, 6), 64),
    "resnet50": ((3, 4, 6), 64),
    "resnet101": ((3, 4, 23), 64),
    "resnet152": ((3, 8, 36), 64),
    "resnet_nano": ((1, 1, 1), 16),
}
EXPANSION = 4  # channels out of a bottleneck for one inside


class FrozenBatchNorm(nn.Module):
    """BatchNorm in which nothing moves: scale, shift and statistics are buffers, always (`--freeze-resnet`)."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, h, w] to the same shape."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def _norm(channels: int, frozen: bool, synchronised: bool) -> nn.Module:
    if synchronised:
        return nn.SyncBatchNorm(channels, eps=1e-3)  # official unify_transformer.py: this eps, and before frozen
    return FrozenBatchNorm(channels) if frozen else nn.BatchNorm2d(channels)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolution, added to the block's input."""

    def __init__(self, channels: int, width: int, stride: int, drop_rate: float, **norm: bool):
        super().__init__()
        out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = _norm(width, **norm)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = _norm(width, **norm)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = _norm(out, **norm)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), _norm(out, **norm))
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, h, w] to float[B, 4 * width, h / stride, w / stride], rounded up."""
        branch = self.bn1(self.conv1(x)).relu_()
        branch = self.bn2(self.conv2(branch)).relu_()
        branch = self.bn3(self.conv3(branch))
        identity = x if self.downsample is None else self.downsample(x)
        return (identity + drop_path(branch, self.drop_rate, self.training)).relu_()


class ResNet(nn.Module):
    """Stem and three bottleneck stages of a ResNet, without the fourth stage and the classifier.

    Args:
        kind: a name in `RESNETS` (`--resnet-type`).
        drop_path_rate: of the last block of each stage; it grows linearly from 0 at the first.
        frozen: `FrozenBatchNorm` instead of BatchNorm.
        synchronised: SyncBatchNorm; it wins over `frozen`, as official.
    """

    def __init__(self, kind: str, drop_path_rate: float = 0.0, frozen: bool = False, synchronised: bool = False):
        super().__init__()
        blocks, width = RESNETS[kind]
        norm = {"frozen": frozen, "synchronised": synchronised}
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = _norm(width, **norm)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        channels = width
        for stage, count in enumerate(blocks):
            rates = torch.linspace(0, drop_path_rate, count, device="cpu").tolist()
            inside = width * 2**stage
            layer = nn.Sequential()
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layer.append(Bottleneck(channels, inside, stride, rates[block], **norm))
                channels = inside * EXPANSION
            self.add_module(f"layer{stage + 1}", layer)
        self.out_channels = channels
        self._folded: tuple[ResNet] | tuple[()] = ()  # in a tuple it is no submodule, and adds nothing to the weights
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pixels to patch features.

        Args:
            images: float[B, 3, h, w].

        Returns:
            float[B, out_channels, h / 16, w / 16], each of the four halvings rounded up.
        """
        if self._folded and not self.training:
            return self._folded[0](images)
        x = images.contiguous(memory_format=torch.channels_last)  # the faster layout, and patches come out as rows
        x = self.pool(self.bn1(self.conv1(x)).relu_())
        return self.layer3(self.layer2(self.layer1(x)))

    def train(self, mode: bool = True) -> ResNet:
        """Train or eval mode; training forgets what generation has prepared."""
        if mode:
            self._folded = ()
        return super().train(mode)

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """fairseq's hook before generation: a copy whose convolutions do the work of the normalisations after them."""
        self._folded = ()
        folded = copy.deepcopy(self).eval()
        for module in list(folded.modules()):
            names = [name for name, _ in module.named_children()]
            if isinstance(module, (ResNet, Bottleneck)):
                pairs = [(name, name.replace("conv", "bn")) for name in names if name.startswith("conv")]
            else:  # a stage of blocks, or a convolution and its normalisation
                pairs = [("0", "1")] if names == ["0", "1"] and isinstance(module[0], nn.Conv2d) else []
            for conv, norm in pairs:
                setattr(module, conv, _fold(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
        self._folded = (folded.to(memory_format=torch.channels_last),)


def _fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """A convolution that does what `conv` and then `norm`, in eval mode, do; computed in float64."""
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    both = nn.utils.skip_init(
        nn.Conv2d,
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    both.weight.data.copy_(weight)
    both.bias.data.copy_(shift)
    return both
