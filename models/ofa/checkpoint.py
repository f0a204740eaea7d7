"""Other people's weights: older and official state dicts to ours, and what to say when they do not fit."""

from __future__ import annotations

import logging
import pickle
import re
import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...errors import UserError
from .tuning import BACKBONE, start_fresh

logger = logging.getLogger(__name__)

TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
"""Names of the one token matrix. Where a checkpoint's differ, the encoder's wins, as official."""

LAYER_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}
"""What `layer_norms.0`, `.1` ... were called when BART was young."""

BEYOND = ("layer4.", "fc.")
"""What a whole ResNet has and OFA's does not: the last stage and the classifier."""

SIZE_FLAGS = (
    (r"token_rp_bucket|token_rel_pos_table", "--token-bucket-size, --max-source-positions, --max-target-positions"),
    (r"image_rp_bucket|image_rel_pos_table|embed_image_positions", "--image-bucket-size"),
    (r"embed_positions", "--max-source-positions, --max-target-positions"),
    (r"embed_images|image_proj", "--resnet-type"),
    (r"adapter", "--adapter-dim"),
    (r"prompt_encoder", "--encoder-prompt-length, --encoder-prompt-dim and the decoder's"),
    (r"lora_", "--lora"),
)


def upgrade(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Turns a state dict into one of `model`, in place, as far as that is known to be right.

    Old names are renamed, tied names completed, tables that grew get new rows, index buffers that belong to the model
    are the model's, and floating-point tensors take the model's type. A state dict of the model itself is unchanged.
    Nothing is drawn from a global generator: new rows are the same on every rank and at every run.

    Args:
        model: an OFAModel.
        state: weights by name.

    Raises:
        UserError: the checkpoint's vocabulary is larger than the dictionary.
    """
    own = model.state_dict()
    _rename(state)
    _complete_tied(state)
    _fit_batch_norm(own, state)
    if any(key in own for key in state):  # else the constants alone would match
        start_fresh(own, state)
        state["decoder.image_position_idx"] = own["decoder.image_position_idx"]
        for key in own:
            if key.endswith((".version", "_rp_bucket")):
                state.setdefault(key, own[key])
    for key in [key for key in state if key.startswith("classification_heads.")]:
        if key not in own or own[key].shape != state[key].shape:
            logger.warning("%s: the model has no such classification head; left out", key)
            del state[key]
    for key in own:
        if key.startswith("classification_heads.") and key not in state:
            state[key] = own[key]

    if state.get(TIED[0]) is not None and state[TIED[0]].shape[1:] == own[TIED[0]].shape[1:]:
        rows, wanted = len(state[TIED[0]]), len(own[TIED[0]])
        if rows > wanted:
            raise UserError(
                f"the checkpoint knows {rows} tokens, the dictionary has {wanted}: use the --bpe-dir, --num-bins and "
                "--code-dict-size that it was trained with"
            )
        if rows < wanted:
            grown = _grow(TIED[0], state[TIED[0]], wanted)
            state.update(dict.fromkeys(TIED, grown))
            logger.warning("vocabulary grown from %d to %d tokens: the new rows start at random", rows, wanted)
    for key in ("encoder.embed_image_positions.weight", "decoder.embed_image_positions.weight"):
        if key in state and state[key].shape[1:] == own[key].shape[1:] and len(state[key]) < len(own[key]):
            logger.warning("%s grown from %d to %d rows: the new ones are random", key, len(state[key]), len(own[key]))
            state[key] = _grow(key, state[key], len(own[key]))
    for key, value in state.items():
        if key in own and value.is_floating_point() and value.dtype != own[key].dtype:
            state[key] = value.to(own[key].dtype)


def compare(model: nn.Module, state: Mapping[str, Tensor], strict: bool, allow_missing: bool) -> None:
    """Refuses, in one line that says what to do, upgraded weights that are not the model's.

    Args:
        model: an OFAModel.
        state: weights by name, after `upgrade`.
        strict: missing and unexpected names are errors rather than a warning.
        allow_missing: missing names are a warning in any case.

    Raises:
        UserError: no name matches, a shape differs, or names are missing or unexpected.
    """
    own = model.state_dict()
    common = [key for key in own if key in state]
    if not common:
        found = next(iter(state), "nothing")
        raise UserError(
            f"0 of {len(own)} weights matched: expected {next(iter(own))} first, found {found}; "
            "this is no OFA checkpoint, or its names have a prefix to take off"
        )
    for key in common:
        if own[key].shape != state[key].shape:
            flags = next((flags for pattern, flags in SIZE_FLAGS if re.search(pattern, key)), "its size flags")
            raise UserError(
                f"the checkpoint is of another size: {key} is {list(state[key].shape)} there, {list(own[key].shape)} "
                f"here; give its --arch (or {flags})"
            )
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    if unexpected:
        text = f"{len(unexpected)} weights of the checkpoint have no place in the model: {_some(unexpected)}"
        if strict:
            raise UserError(f"{text}; is --arch, --resnet-type or another size flag the checkpoint's?")
        logger.warning("%s", text)
    if missing:
        text = f"{len(missing)} of {len(own)} weights are missing in the checkpoint: {_some(missing)}"
        if strict and not allow_missing:
            raise UserError(f"{text}; check --arch, or start them at random with --allow-missing-weights")
        logger.warning("%s; they keep the values the model was built with", text)


def load_backbone(backbone: nn.Module, path: str) -> None:
    """Gives an image backbone the weights of a file (`--resnet-model-path`), all of them or none.

    Args:
        backbone: `encoder.embed_images` of a new model.
        path: a state dict as torch.save writes it, from `ofa train-backbone` or of torchvision's ResNet of that depth,
            whose fourth stage and classifier are left out; or an OFA checkpoint, whose backbone is taken.

    Raises:
        UserError: the file cannot be read, holds more than data, or is of another backbone.
    """
    flag = f"--resnet-model-path {path}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot be read ({error.strerror or error}): give a file of weights") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{flag}: damaged, no file of weights, or more than weights: nothing of it was used") from error
    for name in ("model", "state_dict"):
        state = state[name] if isinstance(state, dict) and name in state else state
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{flag}: holds no state dict: save the weights alone, torch.save(model.state_dict(), ...)")
    state = dict(state)
    _rename(state)
    if any(key.startswith(BACKBONE) for key in state):
        state = {key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)}
    state = {key: value for key, value in state.items() if not key.startswith(BEYOND)}
    own = backbone.state_dict()
    _fit_batch_norm(own, state)
    wrong = {
        "is not there": own.keys() - state.keys(),
        "is of no use": state.keys() - own.keys(),
        "is of another size": {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape},
    }
    for what, names in wrong.items():
        if names:
            raise UserError(f"{flag}: weights of another backbone: {_some(sorted(names))} {what}; check --resnet-type")
    backbone.load_state_dict(state)
    logger.info("the image backbone starts from %s", path)


def _rename(state: dict[str, Tensor]) -> None:
    """Old names to new ones, in place; `module.`, left by data-parallel wrappers, is taken off if all names have it."""
    if state and all(key.startswith("module.") for key in state):
        for key in list(state):
            state[key.removeprefix("module.")] = state.pop(key)
    for key in list(state):
        old_norm = re.fullmatch(r"((encoder|decoder)\.layers\.\d+\.)layer_norms\.(\d)\.(weight|bias)", key)
        fused = re.fullmatch(r"((?:encoder|decoder)\.layers\.\d+\.\w+_attn\.)in_proj_(weight|bias)", key)
        if old_norm:
            prefix, stack, number, kind = old_norm.groups()
            state[f"{prefix}{LAYER_NORMS[stack][int(number)]}.{kind}"] = state.pop(key)
        elif fused:
            prefix, kind = fused.groups()
            for name, part in zip("qkv", state.pop(key).chunk(3), strict=True):
                state[f"{prefix}{name}_proj.{kind}"] = part


def _complete_tied(state: dict[str, Tensor]) -> None:
    for name in TIED:
        if name in state:
            state.update(dict.fromkeys(TIED, state[name]))
            return


def _fit_batch_norm(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
    """Frozen normalisation has no `num_batches_tracked`: dropped or begun at 0, either way."""
    for key in [key for key in state if key.endswith(".num_batches_tracked") and key not in own]:
        del state[key]
    for key in own:
        mean = key.replace("num_batches_tracked", "running_mean")
        if key.endswith(".num_batches_tracked") and key not in state and mean in state:
            state[key] = torch.zeros_like(own[key])


def _grow(name: str, table: Tensor, rows: int) -> Tensor:
    """`table` with rows from N(0, 1 / sqrt(D)) appended (official unify_transformer.py), the same ones for a name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    new = torch.randn(rows - len(table), table.shape[1], generator=generator) * table.shape[1] ** -0.5
    return torch.cat([table, new.to(table)])


def _some(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
