"""The encoder: patches and tokens to states."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models import FairseqEncoder
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...errors import UserError
from .config import OFAConfig
from .layers import EncoderLayer
from .position import RelativeTables, grid_positions, image_bucket_count, image_buckets, split_heads, token_buckets
from .resnet import RESNETS, ResNet
from .tuning import Prefix, prompt_encoder
from .vit import VITS, ViT

BACKBONES: dict[str, type[nn.Module]] = {**dict.fromkeys(RESNETS, ResNet), **dict.fromkeys(VITS, ViT)}
"""What `--resnet-type` chooses from.

Each class is given (kind, drop-path rate, frozen, synchronised), turns pixels float[B, 3, h, w] into features
float[B, out_channels, h / 16, w / 16], and refuses by name the flags that mean nothing to it.
"""


class Encoder(FairseqEncoder):
    """Reads `[patches, tokens]`: pictures always come first, in embeddings, mask and positions alike.

    Args:
        cfg: a complete configuration (`config.resolve`).
        dictionary: fairseq Dictionary of the source.
        embed_tokens: the token matrix, shared with the decoder.
    """

    def __init__(self, cfg: OFAConfig, dictionary: Any, embed_tokens: nn.Embedding):
        super().__init__(dictionary)
        width, heads, side = cfg.encoder_embed_dim, cfg.encoder_attention_heads, cfg.image_bucket_size
        self.padding_idx = embed_tokens.padding_idx
        self.max_source_positions = cfg.max_source_positions
        self.image_bucket_size = side
        self.heads = heads
        self.position_scale = (width / heads * cfg.attn_scale_factor) ** -0.5
        self.dropout = cfg.dropout
        self.layerdrop = cfg.encoder_layerdrop
        self.entangle = cfg.entangle_position_embedding
        self.checkpoint_activations = cfg.checkpoint_activations
        # with --interpolate-position, larger grids stretch this one
        self.pretrained_side = cfg.orig_patch_image_size // 16 if cfg.interpolate_position else None

        self.register_buffer("version", torch.tensor([3.0]))
        self.register_buffer("token_rp_bucket", token_buckets(cfg.token_bucket_size, cfg.max_source_positions))
        self.register_buffer("image_rp_bucket", image_buckets(side))
        self.encoder_prompt_encoder = prompt_encoder(cfg, "encoder")
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.type_embedding = nn.Embedding(2, width)  # text, picture
        self.embed_images = image_backbone(cfg)
        self.image_proj = nn.Linear(self.embed_images.out_channels, width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(cfg.max_source_positions + 2, width)
        self.embed_image_positions = nn.Embedding(side * side + 1, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.pos_q_linear = nn.Linear(width, width)
        self.pos_k_linear = nn.Linear(width, width)
        rates = torch.linspace(0, cfg.encoder_drop_path_rate, cfg.encoder_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(EncoderLayer(cfg, rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(width)
        self.token_rel_pos_table_list = RelativeTables(cfg.encoder_layers, 2 * cfg.token_bucket_size - 1, heads)
        self.image_rel_pos_table_list = RelativeTables(cfg.encoder_layers, image_bucket_count(side), heads)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        patch_images: Tensor | None = None,
        patch_images_2: Tensor | None = None,
        patch_masks: Tensor | None = None,
        image_rows: Tensor | None = None,
        patch_seeds: Tensor | None = None,
        code_masks: Tensor | None = None,
        sample_patch_num: int | None = None,
        token_embeddings: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> dict[str, list[Tensor]]:
        """Encodes a batch.

        Args:
            src_tokens: int64[B, L], padded on the right.
            src_lengths, code_masks: taken because `net_input` holds them; not read.
            patch_images: float[B, 3, h, w], normalised pixels of any float type; float[N, 3, h, w] with `image_rows`.
            patch_images_2: a second picture, which the published architecture cannot take.
            patch_masks: bool[B], False where a row has no picture; required with `patch_images`.
            image_rows: int64[B], which of N pictures is each row's: several rows about one picture share its features.
            patch_seeds: int64[B], what each row's patches are drawn from; None: from torch's generator.
            sample_patch_num: keep so many patches of each picture, drawn anew for each row; all if there are no more.
            token_embeddings: float[B, L, D] instead of the lookup of `src_tokens`.
            return_all_hiddens: fill `encoder_states`.

        Returns:
            Lists, as fairseq wants them; P patches and L tokens make S positions.
            `encoder_out` [float[S, B, D]], `encoder_padding_mask` [bool[B, S]], `position_embeddings` [float[B, S, D]],
            normalised, a broadcast view where all rows share them, `encoder_states` the layers' inputs and the last
            one's output, float[S, B, D] each; `encoder_embedding`, `src_tokens` and `src_lengths` are empty.

        Raises:
            UserError: the source or the picture is larger than the model's position tables.
            ValueError: `patch_images_2`, or pictures without `patch_masks`.
        """
        if patch_images_2 is not None:
            raise ValueError("patch_images_2: the published architecture has type embeddings for one picture only")
        x, positions, padding = self._text(src_tokens, token_embeddings)
        buckets = [self.token_rp_bucket[: x.shape[1], : x.shape[1]]]
        if patch_images is not None:
            if patch_masks is None:
                raise ValueError("patch_images need patch_masks, bool[B], False where a row has no picture")
            patches, ids, patch_positions = self._patches(patch_images, image_rows, sample_patch_num, patch_seeds)
            buckets.insert(0, self.image_rp_bucket[ids.unsqueeze(-1), ids.unsqueeze(-2)])
            x = torch.cat([patches, x], 1)
            padding = torch.cat([(~patch_masks)[:, None].expand(-1, patches.shape[1]), padding], 1)
            rows = max(positions.shape[0], patch_positions.shape[0])
            positions = torch.cat([patch_positions, positions.expand(rows, -1, -1)], 1)

        mask = None
        if padding.any():
            x = x * (~padding).unsqueeze(-1)
            mask = x.new_zeros(padding.shape).masked_fill_(padding, -torch.inf)[:, None, None, :]
        absolute = self._absolute_bias(positions)
        prompts = self.encoder_prompt_encoder
        prefixes: list[Any] = [None] * len(self.layers) if prompts is None else prompts(len(x))
        states = [x]
        for number in range(len(self.layers)):
            if self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop:
                continue
            if self.checkpoint_activations and self.training:
                x = checkpoint(self._layer, number, x, absolute, mask, buckets, prefixes[number], use_reentrant=False)
            else:
                x = self._layer(number, x, absolute, mask, buckets, prefixes[number])
            states.append(x)
        return {
            "encoder_out": [self.layer_norm(x).transpose(0, 1)],
            "encoder_padding_mask": [padding],
            "position_embeddings": [positions.expand(x.shape[0], -1, -1)],
            "encoder_embedding": [],
            "encoder_states": [state.transpose(0, 1) for state in states] if return_all_hiddens else [],
            "src_tokens": [],
            "src_lengths": [],
        }

    def _text(self, tokens: Tensor, embeddings: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded tokens [B, L, D], their normalised positions [1, L, D] and the padding mask [B, L]."""
        length = tokens.shape[1]
        if length > self.max_source_positions:
            raise UserError(
                f"a source of {length} tokens is longer than the model's {self.max_source_positions} positions: "
                "cut sources with --max-src-length or train a model with a larger --max-source-positions"
            )
        positions = self.embed_positions.weight[:length].unsqueeze(0)
        x = self.embed_tokens(tokens) if embeddings is None else embeddings
        x = x + self.type_embedding.weight[0]
        if self.entangle:
            x = x + positions
        x = F.dropout(self.layernorm_embedding(x), self.dropout, self.training)
        return x, self.pos_ln(positions), tokens.eq(self.padding_idx)

    def _patches(
        self, images: Tensor, rows: Tensor | None, sample: int | None, seeds: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded patches [B, P, D], their position ids [P] or [B, P], and normalised positions [1 or B, P, D]."""
        features = self.embed_images(images.to(self.image_proj.weight.dtype))
        height, width = features.shape[2:]
        if max(height, width) > self.image_bucket_size:
            raise UserError(
                f"a picture of {images.shape[3]}x{images.shape[2]} pixels makes {width}x{height} patches, more than "
                f"the model's {self.image_bucket_size} a side: lower --patch-image-size to at most "
                f"{16 * self.image_bucket_size} or train a model with a larger --image-bucket-size"
            )
        features = features.flatten(2).transpose(1, 2)  # [N, P, C]
        if rows is not None:
            features = features[rows]  # [B, P, C]
        ids = grid_positions(height, width, self.image_bucket_size).to(images.device)
        chosen = None
        if sample is not None and sample < height * width:  # else all are kept, and rows may share their positions
            chosen = self.draw_patches(len(features), height * width, sample, seeds).to(images.device)  # [B, P]
            features = features.gather(1, chosen.unsqueeze(-1).expand(-1, -1, features.shape[2]))
            ids = ids[chosen]
        # official unify_transformer.py counts after sampling: as many patches as the grid has keep the plain table
        if self.pretrained_side is not None and ids.shape[-1] > self.pretrained_side**2:
            positions = self._stretched_positions(height, width)
            if chosen is not None:
                positions = positions[0][chosen]
        else:
            positions = self.embed_image_positions(ids).view(-1, ids.shape[-1], self.image_proj.out_features)
        x = self.image_proj(features) + self.type_embedding.weight[1]
        if self.entangle:
            x = x + positions
        x = F.dropout(self.patch_layernorm_embedding(x), self.dropout, self.training)
        return x, ids, self.image_pos_ln(positions)

    @staticmethod
    def draw_patches(rows: int, patches: int, count: int, seeds: Tensor | None = None) -> Tensor:
        """Which patches each row keeps, in random order: int64[rows, count].

        From the rows' own seeds, so that a row keeps the same patches whichever process has it in whatever batch;
        without them from torch's generator, which fairseq's trainer seeds for every update. Official OFA takes
        Python's, which nobody seeds.

        Args:
            rows, patches, count: how many there are, and how many are kept of each row's.
            seeds: int64[rows].
        """
        if seeds is None:
            return torch.rand(rows, patches).argsort(1)[:, :count]
        own = (torch.Generator().manual_seed(seed) for seed in seeds.tolist())
        return torch.stack([torch.randperm(patches, generator=generator)[:count] for generator in own])

    def _stretched_positions(self, height: int, width: int) -> Tensor:
        """The pretrained grid's positions, bilinearly resized to `height` x `width`: [1, P, D]."""
        side = self.pretrained_side
        ids = grid_positions(side, side, self.image_bucket_size).to(self.embed_image_positions.weight.device)
        grid = self.embed_image_positions(ids).view(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
        return grid.flatten(2).transpose(1, 2)

    def _absolute_bias(self, positions: Tensor) -> Tensor:
        """The part of the bias that all layers share: [1 or B, S, D] to [1 or B, H, S, S]."""
        queries = split_heads(self.pos_q_linear(positions), self.heads) * self.position_scale
        return queries @ split_heads(self.pos_k_linear(positions), self.heads).transpose(-1, -2)

    def _layer(
        self,
        number: int,
        x: Tensor,
        absolute: Tensor,
        mask: Tensor | None,
        buckets: list[Tensor],
        prefix: Prefix | None,
    ) -> Tensor:
        """Runs a layer under its bias: relative terms stand on the text-text and patch-patch blocks only."""
        bias = absolute.clone()
        *patches, text = buckets
        start = bias.shape[-1] - text.shape[-1]
        bias[:, :, start:, start:] += self.token_rel_pos_table_list(number, text)
        if patches:
            bias[:, :, :start, :start] += self.image_rel_pos_table_list(number, patches[0])
        return self.layers[number](x, bias, mask, prefix)

    def for_pictures(self) -> list[nn.Module]:
        """What a batch without pictures does not use."""
        return [
            *(self.embed_images, self.image_proj, self.patch_layernorm_embedding),
            *(self.embed_image_positions, self.image_pos_ln, self.image_rel_pos_table_list),
        ]

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        """The rows `new_order` (int64[N]) of what `forward` returned; positions that rows share stay one row."""
        positions = [
            p[:1].expand(len(new_order), -1, -1) if is_shared(p) else p.index_select(0, new_order)
            for p in encoder_out["position_embeddings"]
        ]
        return {
            **encoder_out,
            "encoder_out": [x.index_select(1, new_order) for x in encoder_out["encoder_out"]],
            "encoder_padding_mask": [x.index_select(0, new_order) for x in encoder_out["encoder_padding_mask"]],
            "position_embeddings": positions,
            "encoder_states": [x.index_select(1, new_order) for x in encoder_out["encoder_states"]],
        }

    def max_positions(self) -> int:
        """Most source tokens."""
        return self.max_source_positions


def image_backbone(cfg: OFAConfig) -> nn.Module:
    """The backbone that `--resnet-type` names.

    Raises:
        UserError: there is none of that name, or it cannot follow another flag.
    """
    if cfg.resnet_type not in BACKBONES:
        raise UserError(f"--resnet-type {cfg.resnet_type} is unknown: take one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[cfg.resnet_type]
    return backbone(cfg.resnet_type, cfg.resnet_drop_path_rate, cfg.freeze_resnet, cfg.sync_bn)


def is_shared(positions: Tensor) -> bool:
    """Whether float[B, S, D] is one row seen B times, so that work on it need not be repeated."""
    return positions.shape[0] == 1 or positions.stride(0) == 0
