"""Model S of the parity fixtures (fixtures/model/README.md): a small OFA whose weights follow from their names."""

from __future__ import annotations

import copy
import zlib
from argparse import Namespace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor, nn

FIXTURES = Path(__file__).parents[1] / "fixtures" / "model"
TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
AS_BUILT = ("version", "token_rp_bucket", "image_rp_bucket", "image_position_idx")
SIZES = {
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_ffn_embed_dim": 128,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
}


@lru_cache(maxsize=1)
def small_dictionary() -> Dictionary:
    """469 symbols: specials, 300 text tokens, `<mask>`, 64 codes, 100 bins."""
    dictionary = Dictionary.load(str(FIXTURES / "tiny_dict.txt"))
    dictionary.add_symbol("<mask>")
    for kind, count in (("code", 64), ("bin", 100)):
        for number in range(count):
            dictionary.add_symbol(f"<{kind}_{number}>")
    return dictionary


def small_config(**overrides: Any) -> Any:
    """The complete configuration of S; `overrides` come after the architecture, so that its switches can be off."""
    from ofa_plugin.models.ofa.config import OFAConfig, resolve

    cfg = resolve(Namespace(_name="ofa_tiny", **{k: overrides.get(k, v) for k, v in SIZES.items()}))
    for key, value in overrides.items():
        if key not in OFAConfig.__dataclass_fields__:
            raise KeyError(key)
        setattr(cfg, key, value)
    return cfg


def build_small(
    device: str = "cpu", dtype: torch.dtype = torch.float32, recipe: str | None = "", **overrides: Any
) -> tuple[nn.Module, Dictionary]:
    """Model S in eval mode and its dictionary.

    Args:
        recipe: what the recipe puts in front of every name; None leaves the weights at their random start.
        overrides: fields of OFAConfig that differ from S.
    """
    from ofa_plugin.models.ofa.model import OFAModel

    model = OFAModel(small_config(**overrides), small_dictionary())
    if recipe is not None:
        model.load_state_dict(recipe_state(model, recipe))
    return model.to(device, dtype).eval(), small_dictionary()


@lru_cache(maxsize=1)
def small_model() -> nn.Module:
    """Model S in float32, built once for all tests: do not change it, ask `small_copy` for one that you may."""
    return build_small()[0]


def small_copy() -> nn.Module:
    """A copy of model S of the test's own."""
    return copy.deepcopy(small_model())


def recipe_state(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The recipe's float32 value for every tensor of `model`; index buffers as built."""
    state = {}
    for key, value in model.state_dict().items():
        name = key.rpartition(".")[2]
        if name == "num_batches_tracked":
            state[key] = torch.zeros_like(value)
        elif name in AS_BUILT:
            state[key] = value
        else:
            seeded = prefix + ("encoder.embed_tokens.weight" if key in TIED else key)
            state[key] = torch.from_numpy(_draw(seeded, tuple(value.shape)).astype(np.float32))
    return state


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    z = np.random.RandomState(zlib.crc32(key.encode("utf-8"))).standard_normal(shape)
    last = key.rpartition(".")[2]
    if last == "running_var":
        return 0.5 + 0.5 * np.abs(z)
    if last == "running_mean":
        return 0.1 * z
    if len(shape) >= 2:
        gain = 3 if key.endswith(("embed_tokens.weight", "q_proj.weight", "q_linear.weight")) else 1
        return z * gain / np.sqrt(np.prod(shape[1:]))
    if len(shape) == 1 and last in ("weight", "c_attn", "w_resid"):
        return (0.3 if key.endswith("layernorm_embedding.weight") else 1) * (1 + 0.1 * z)
    return 0.1 * z


def load_case(name: str) -> dict[str, Tensor]:
    """The arrays `in_*` and `out_*` of a fixture; pictures also as `in_patch_images`, normalised float32."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as arrays:
        case = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    if "in_patch_images_u8" in case:
        case["in_patch_images"] = (case["in_patch_images_u8"].float() / 255 - 0.5) / 0.5
    return case


def net_input(case: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of the model's forward in a case."""
    names = ("src_tokens", "src_lengths", "prev_output_tokens", "patch_images", "patch_masks", "code_masks")
    return {name: case[f"in_{name}"] for name in names if f"in_{name}" in case}
