"""OFAConfig, the table of sizes behind `--arch`, and the official flags that change nothing.

fairseq reads the field types of this dataclass at run time, so annotations are not postponed here and `Optional[...]`
is spelt out.
"""
# ruff: noqa: UP045  fairseq's parser understands Optional[int], not int | None

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import DictConfig

from ...errors import UserError

logger = logging.getLogger(__name__)


def _flag(help: str, default: Any = False, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class OFAConfig(FairseqDataclass):
    """What may be said about an OFA model on the command line. A default of None is filled in by the architecture."""

    encoder_embed_dim: Optional[int] = _flag("width of the encoder", None)
    encoder_ffn_embed_dim: Optional[int] = _flag("width inside the encoder's feed-forward blocks", None)
    encoder_layers: Optional[int] = _flag("number of encoder layers", None)
    encoder_attention_heads: Optional[int] = _flag("attention heads of the encoder", None)
    decoder_embed_dim: Optional[int] = _flag("width of the decoder: the encoder's, whose token matrix it shares", None)
    decoder_ffn_embed_dim: Optional[int] = _flag("width inside the decoder's feed-forward blocks", None)
    decoder_layers: Optional[int] = _flag("number of decoder layers", None)
    decoder_attention_heads: Optional[int] = _flag("attention heads of the decoder", None)
    resnet_type: Optional[str] = _flag("image backbone: resnet18/34/50/101/152, resnet_nano or ViT-B/16", None)
    resnet_model_path: Optional[str] = _flag("file of weights from which the image backbone starts, in training", None)

    max_source_positions: Optional[int] = _flag("most source tokens (pictures not counted)", None)
    max_target_positions: Optional[int] = _flag("most target tokens", None)
    token_bucket_size: Optional[int] = _flag("buckets of relative text distance", None)
    image_bucket_size: Optional[int] = _flag("side of the patch grid: pictures up to 16 times as many pixels", None)
    code_image_size: Optional[int] = _flag("pixels of a side of a generated picture; 8 pixels are one code", None)
    linear_init: Optional[str] = _flag("how linear layers start: bert, N(0, 0.02), or xavier, uniform by width", None)
    image_position_init: Optional[str] = _flag(
        "how the encoder's positions of patches start: bert, N(0, 0.02), or sines of row and column", None
    )
    attn_scale_factor: float = _flag("attention logits are divided by the root of this times the head width", 2.0)
    orig_patch_image_size: int = _flag("picture side of pretraining, with --interpolate-position", 256)
    interpolate_position: bool = _flag("stretch the position grid of pretraining over larger pictures")

    activation_fn: str = _flag("activation of the feed-forward blocks", "gelu")
    dropout: float = _flag("dropout after embeddings and sub-layers", 0.0)
    attention_dropout: float = _flag("dropout on attention weights", 0.0)
    activation_dropout: float = _flag("dropout inside feed-forward blocks", 0.0, argparse_alias="--relu-dropout")
    encoder_drop_path_rate: float = _flag("drop-path rate of the encoder's last layer; earlier ones have less", 0.0)
    decoder_drop_path_rate: float = _flag("drop-path rate of the decoder's last layer; earlier ones have less", 0.0)
    resnet_drop_path_rate: float = _flag("drop-path rate of the last block of each ResNet stage", 0.0)
    encoder_layerdrop: float = _flag("probability that training skips an encoder layer", 0.0)
    decoder_layerdrop: float = _flag("probability that training skips a decoder layer", 0.0)

    scale_attn: bool = _flag("LayerNorm after each attention (the published sizes always have it)")
    scale_fc: bool = _flag("LayerNorm inside each feed-forward block (the published sizes always have it)")
    scale_heads: bool = _flag("a learned factor for each attention head (the published sizes always have it)")
    scale_resids: bool = _flag("a learned factor on the residual of each feed-forward block")
    disable_entangle: bool = _flag("keep positions out of the decoder's inputs (the published sizes always do)")
    entangle_position_embedding: Optional[bool] = _flag("add positions to the encoder's inputs as well", None)

    freeze_encoder_embedding: bool = _flag("do not train the token matrix that encoder and decoder share")
    freeze_decoder_embedding: bool = _flag("the same matrix, the same effect")
    freeze_encoder: bool = _flag("train nothing of the encoder, its token matrix and ResNet statistics included")
    freeze_decoder: bool = _flag("train nothing of the decoder, the token matrix included")
    freeze_resnet: bool = _flag("fix the ResNet's normalisation, statistics and scale; its convolutions still train")
    freeze_resnet_weights: bool = _flag("train nothing of the image backbone, its convolutions and statistics included")
    sync_bn: bool = _flag("batch statistics over all processes (eps 1e-3, as official); GPUs only in training")
    checkpoint_activations: bool = _flag("recompute transformer layers in the backward pass to save memory")

    adapter: bool = _flag("a small bottleneck behind each feed-forward block; nothing else is trained")
    adapter_dim: int = _flag("width inside the adapters", 200)
    bitfit: bool = _flag("train the biases of the transformer, nothing else")
    lora: int = _flag("rank of an update of the attention's matrices; nothing else is trained (0: off)", 0)
    lora_alpha: float = _flag("the update is multiplied by this over the rank", 16.0)
    lora_layers: str = _flag("linear layers with an update, of q,k,v,out,fc1,fc2", "q,k,v,out")
    encoder_prompt: bool = _flag("keys and values in front of every encoder layer's own; nothing else is trained")
    encoder_prompt_type: str = _flag("prefix, the only one", "prefix")
    encoder_prompt_length: int = _flag("positions of the encoder's prefix", 100)
    encoder_prompt_projection: bool = _flag("compute the encoder's prefix from a smaller table by two layers")
    encoder_prompt_dim: Optional[int] = _flag("width between those layers (default: twice the model's)", None)
    decoder_prompt: bool = _flag("keys and values in front of every decoder layer's own; nothing else is trained")
    decoder_prompt_type: str = _flag("prefix, the only one", "prefix")
    decoder_prompt_length: int = _flag("positions of the decoder's prefix", 100)
    decoder_prompt_projection: bool = _flag("compute the decoder's prefix from a smaller table by two layers")
    decoder_prompt_dim: Optional[int] = _flag("width between those layers (default: twice the model's)", None)
    save_tuned_only: bool = _flag("checkpoints hold only the weights that are trained; `ofa merge` adds the base's")

    pooler_dropout: float = _flag("dropout of classification heads", 0.0)
    pooler_activation_fn: str = _flag("activation of mlp classification heads", "tanh")
    pooler_classifier: str = _flag("classification heads: mlp or linear", "mlp")

    allow_missing_weights: bool = _flag("load a checkpoint that lacks weights; those keep their random start")


def _size(width: int, layers: tuple[int, int], heads: int, resnet: str, **other: Any) -> dict[str, Any]:
    """One row of the table: published OFA unless `other` says otherwise."""
    return {
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 4 * width,
        "encoder_layers": layers[0],
        "encoder_attention_heads": heads,
        "decoder_embed_dim": width,
        "decoder_ffn_embed_dim": 4 * width,
        "decoder_layers": layers[1],
        "decoder_attention_heads": heads,
        "resnet_type": resnet,
        "max_source_positions": 1024,
        "max_target_positions": 1024,
        "token_bucket_size": 256,
        "image_bucket_size": 42,
        "code_image_size": 128,
        "linear_init": "bert",
        "image_position_init": "bert",
        "entangle_position_embedding": False,
        **other,
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ofa_tiny": _size(256, (4, 4), 4, "resnet50"),
    "ofa_medium": _size(512, (4, 4), 8, "resnet101"),
    "ofa_base": _size(768, (6, 6), 12, "resnet101"),
    "ofa_large": _size(1024, (12, 12), 16, "resnet152"),
    "ofa_huge": _size(1280, (24, 12), 16, "resnet152"),
    # Ours, for a laptop: the published index buffers alone are 67 MB per checkpoint. At this width BERT's 0.02 leaves
    # attention flat for hundreds of updates; xavier halves the updates that the quickstart's captions need.
    "ofa_nano": _size(
        128,
        (3, 3),
        4,
        "resnet_nano",
        max_source_positions=256,
        max_target_positions=256,
        token_bucket_size=64,
        image_bucket_size=16,
        linear_init="xavier",
        # who stands left of whom is learned sooner where inputs hold positions, and sooner still where these begin as
        # a grid (benchmarks/position_probe.py)
        image_position_init="sines",
        entangle_position_embedding=True,
    ),
}

LORA_LAYERS = {
    **{name: f"{name}_proj" for name in ("q", "k", "v", "out")},
    "fc1": "fc1",
    "fc2": "fc2",
}
"""What `--lora-layers` may name, and what these are called in every layer."""

SWITCHED_ON = {
    **dict.fromkeys(ARCHITECTURES, ("scale_attn", "scale_fc", "scale_heads", "disable_entangle")),
    # Without NormFormer's norms, which are for depth, questions are learned from a third fewer examples at this
    # size, in less time each.
    "ofa_nano": ("disable_entangle",),
}
"""Flags that a row of the table implies. A True default would turn `--scale-attn` into an off-switch."""

ALWAYS_SO = (
    "encoder-normalize-before",
    "decoder-normalize-before",
    "share-all-embeddings",
    "share-decoder-input-output-embed",
    "no-scale-embedding",
    "layernorm-embedding",
    "patch-layernorm-embedding",
    "code-layernorm-embedding",
    "add-type-embedding",
)
"""Official switches that say what this model is in any case: accepted in silence."""

UNREAD: dict[str, Optional[type]] = {
    "encoder-learned-pos": None,
    "decoder-learned-pos": None,
    "no-token-positional-embeddings": None,
    "no-cross-attention": None,
    "cross-self-attention": None,
    "encoder-embed-path": str,
    "decoder-embed-path": str,
    "decoder-input-dim": int,
    "decoder-output-dim": int,
    "adaptive-input": None,
    "adaptive-softmax-cutoff": str,
    "adaptive-softmax-dropout": float,
    "quant-noise-pq": float,
    "quant-noise-pq-block-size": int,
    "quant-noise-scalar": float,
    "offload-activations": None,
    "min-params-to-wrap": int,
    "encoder-layers-to-keep": str,
    "decoder-layers-to-keep": str,
    "spectral-norm-classification-head": None,
    "valid-batch-size": int,  # of the tasks: candidates scored at once; ours share one pass
}
"""Official flags without effect here, and the type of their value (None: a switch). Named in one warning when given."""


def add_inert_flags(parser: argparse.ArgumentParser) -> None:
    """Lets the official flags of `ALWAYS_SO` and `UNREAD` be given; they never enter the configuration."""
    for name, kind in {**dict.fromkeys(ALWAYS_SO), **UNREAD}.items():
        value = {"action": "store_true"} if kind is None else {"type": kind}
        help = "always so in OFA" if name in ALWAYS_SO else "accepted for official scripts, has no effect"
        try:
            parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=help, **value)
        except argparse.ArgumentError:  # fairseq or the task has a flag of this name
            continue


def apply_architecture(name: str, cfg: Any) -> None:
    """Fills `cfg`, a Namespace or DictConfig, in place: None becomes the row's number, the row's switches go on.

    It runs twice under fairseq, after the command line is parsed and before the model is built.
    """
    for key, value in ARCHITECTURES[name].items():
        if getattr(cfg, key, None) is None:
            # a width given for the encoder alone means the whole model, whose two stacks share the token matrix
            setattr(cfg, key, cfg.encoder_embed_dim if key == "decoder_embed_dim" else value)
    for key in SWITCHED_ON[name]:
        setattr(cfg, key, True)
    if isinstance(cfg, argparse.Namespace):
        given = [f"--{flag}" for flag in UNREAD if hasattr(cfg, flag.replace("-", "_"))]
        if given and not hasattr(cfg, "_name"):  # the command line, not the configuration inside a checkpoint
            logger.warning("accepted for official scripts, but nothing reads: %s", " ".join(given))


def resolve(cfg: Any) -> OFAConfig:
    """A complete OFAConfig from what fairseq hands to `build_model`.

    Args:
        cfg: OFAConfig, DictConfig, mapping or Namespace (official checkpoints store the last). Fields that OFAConfig
            does not have are dropped, fields that it has and `cfg` lacks take their default.

    Raises:
        UserError: no architecture is named and a size is missing.
    """
    if isinstance(cfg, (Mapping, DictConfig)):
        given = dict(cfg.items())
    else:
        given = dict(vars(cfg))
    known = {f.name for f in fields(OFAConfig)}
    resolved = OFAConfig(**{key: value for key, value in given.items() if key in known})
    name = resolved._name or given.get("arch")
    if name in ARCHITECTURES:
        apply_architecture(name, resolved)
    missing = [key for key in ARCHITECTURES["ofa_base"] if getattr(resolved, key) is None]
    if missing:
        flags = ", ".join("--" + key.replace("_", "-") for key in missing)
        raise UserError(f"--arch {name} names no size: take one of {', '.join(ARCHITECTURES)}, or give {flags}")
    check(resolved)
    return resolved


def check(cfg: OFAConfig) -> None:
    """Refuses what no OFA model can be.

    Raises:
        UserError: naming the flag.
    """
    if cfg.decoder_embed_dim != cfg.encoder_embed_dim:
        raise UserError(
            f"--decoder-embed-dim {cfg.decoder_embed_dim} differs from --encoder-embed-dim {cfg.encoder_embed_dim}, "
            "but encoder and decoder share one token matrix: give both the same width"
        )
    for side in ("encoder", "decoder"):
        width, heads = getattr(cfg, f"{side}_embed_dim"), getattr(cfg, f"{side}_attention_heads")
        if width % heads:
            raise UserError(f"--{side}-attention-heads {heads} does not divide --{side}-embed-dim {width}")
    if cfg.code_image_size // 8 > cfg.image_bucket_size:
        raise UserError(
            f"--code-image-size {cfg.code_image_size} needs a grid of {cfg.code_image_size // 8} codes a side, "
            f"but --image-bucket-size is {cfg.image_bucket_size}: raise it or generate smaller pictures"
        )
    if cfg.linear_init not in ("bert", "xavier"):
        raise UserError(f"--linear-init {cfg.linear_init} is neither bert nor xavier")
    if cfg.image_position_init not in ("bert", "sines"):
        raise UserError(f"--image-position-init {cfg.image_position_init} is neither bert nor sines")
    for side in ("encoder", "decoder"):
        if getattr(cfg, f"{side}_prompt_type") != "prefix":
            raise UserError(f"--{side}-prompt-type {getattr(cfg, f'{side}_prompt_type')}: there is prefix only")
        for name in ("length", "dim"):
            value = getattr(cfg, f"{side}_prompt_{name}")
            if value is not None and value < 1:
                raise UserError(f"--{side}-prompt-{name} {value}: give a number from 1 on")
    if cfg.adapter_dim < 1:
        raise UserError(f"--adapter-dim {cfg.adapter_dim}: give a number from 1 on")
    if cfg.lora < 0:
        raise UserError(f"--lora {cfg.lora}: give a rank, such as 8, or 0 for none")
    named = [name.strip() for name in cfg.lora_layers.split(",")]
    if cfg.lora and not set(named) <= LORA_LAYERS.keys():
        raise UserError(f"--lora-layers {cfg.lora_layers}: give some of {','.join(LORA_LAYERS)}")
    if cfg.save_tuned_only and cfg.allow_missing_weights:
        raise UserError("--save-tuned-only does not go with --allow-missing-weights, whose random weights no base has")
    if cfg.pooler_classifier not in ("mlp", "linear"):
        raise UserError(f"--pooler-classifier {cfg.pooler_classifier} is neither mlp nor linear")
