"""OFAModel: the encoder and decoder as fairseq sees them, their weights' start, freezing and loading."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from fairseq.models import FairseqEncoderDecoderModel, register_model, register_model_architecture
from fairseq.utils import get_activation_fn
from torch import Tensor, nn
from torch.nn import functional as F

from ...muon import mark_matrices
from . import checkpoint, tuning
from .config import ARCHITECTURES, OFAConfig, add_inert_flags, apply_architecture, resolve
from .decoder import Decoder
from .encoder import Encoder
from .layers import touch
from .position import grid_sines

Outputs = tuple[Tensor, dict[str, list[Tensor | None]]]


@register_model("ofa", dataclass=OFAConfig)
class OFAModel(FairseqEncoderDecoderModel):
    """OFA (Wang et al. 2022).

    Args:
        cfg: a complete configuration (`config.resolve`).
        dictionary: fairseq Dictionary of source and target.
    """

    takes_logits_at = True  # of `forward`; what wraps the model answers for it

    def __init__(self, cfg: OFAConfig, dictionary: Any):
        tokens = nn.Embedding(len(dictionary), cfg.encoder_embed_dim, dictionary.pad())
        super().__init__(Encoder(cfg, dictionary, tokens), Decoder(cfg, dictionary, tokens))
        self.cfg = cfg
        self.eos = dictionary.eos()
        self.supported_targets = {"self"}
        self.classification_heads = nn.ModuleDict()
        if cfg.lora:
            tuning.put_lora(self, cfg)
        self.apply(functools.partial(_initialise, xavier=cfg.linear_init == "xavier"))
        if cfg.image_position_init == "sines":
            positions = self.encoder.embed_image_positions.weight
            positions.data.copy_(grid_sines(cfg.image_bucket_size, positions.shape[1]))
        tuning.start(self)
        mark_matrices(self)
        tuning.freeze(self, cfg)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """OFAConfig's flags, and the official ones that change nothing."""
        super().add_args(parser)
        add_inert_flags(parser)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> OFAModel:
        """Builds from whatever configuration fairseq holds and the task's dictionaries.

        Raises:
            ValueError: source and target have dictionaries of different sizes.
            UserError: the configuration is incomplete or contradicts itself.
        """
        if len(task.source_dictionary) != len(task.target_dictionary):
            raise ValueError("source and target must have one dictionary: OFA shares their token matrix")
        return cls(resolve(cfg), task.target_dictionary)

    def forward(
        self,
        src_tokens: Tensor | None = None,
        src_lengths: Tensor | None = None,
        prev_output_tokens: Tensor | None = None,
        patch_images: Tensor | None = None,
        patch_images_2: Tensor | None = None,
        patch_masks: Tensor | None = None,
        image_rows: Tensor | None = None,
        patch_seeds: Tensor | None = None,
        code_masks: Tensor | None = None,
        sample_patch_num: int | None = None,
        features_only: bool = False,
        logits_at: Tensor | None = None,
        classification_head_name: str | None = None,
        token_embeddings: Tensor | None = None,
        return_all_hiddens: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Outputs | dict[str, Outputs]:
        """Source, pictures and previous target tokens to logits (teacher forcing).

        In training every parameter gets a gradient, zero where a batch has no picture or writes no codes: which ones
        take part must not differ between ranks, or data-parallel training waits for ever.

        Args:
            src_tokens: int64[B, L], padded on the right.
            src_lengths: not read.
            prev_output_tokens: int64[B, T], bos and the target without its end, padded on the right.
            patch_images: float[B, 3, h, w], normalised pixels.
            patch_images_2: refused, see `Encoder.forward`.
            patch_masks: bool[B], False where a row has no picture; required with `patch_images`.
            image_rows: int64[B], which picture is each row's, where rows share them, see `Encoder.forward`.
            patch_seeds: int64[B], what the kept patches are drawn from, see `Encoder.draw_patches`.
            code_masks: bool[B], True where a row writes image codes.
            sample_patch_num: keep so many patches of each picture.
            features_only: states instead of logits.
            logits_at: int64[N], indices among the B * T positions: only theirs are computed. Padding has no loss, and
                the logits of a batch are the largest thing in it.
            classification_head_name: scores of this head instead of logits.
            token_embeddings: float[B, L, D] instead of the lookup of `src_tokens`.
            return_all_hiddens: keep the encoder's inner states (the decoder's are always returned).
            alignment_layer, alignment_heads: cross-attention to return, see `Decoder.forward`.
            parts: instead of all others, the arguments of several batches by name: a mixture is one call, since
                data-parallel wrappers expect one forward for each backward.

        Returns:
            logits float[B, T, V] or float[N, V], features float[B, T, D] or class scores float[B, N], and the decoder's
            {"attn": ..., "inner_states": ...}; of a mixture such a pair by name.
        """
        if parts is not None:
            return {name: self.forward(**batch) for name, batch in parts.items()}
        encoder_out = self.encoder(
            src_tokens,
            patch_images=patch_images,
            patch_images_2=patch_images_2,
            patch_masks=patch_masks,
            image_rows=image_rows,
            patch_seeds=patch_seeds,
            sample_patch_num=sample_patch_num,
            token_embeddings=token_embeddings,
            return_all_hiddens=return_all_hiddens,
        )
        x, extra = self.decoder(
            prev_output_tokens,
            code_masks=code_masks,
            encoder_out=encoder_out,
            features_only=True,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
        )
        if self.training and torch.is_grad_enabled():
            x = touch(x, self._idle(patch_images, code_masks, classification_head_name))
        if classification_head_name is not None:
            last = prev_output_tokens.ne(self.decoder.padding_idx).sum(1) - 1
            x = self.classification_heads[classification_head_name](x[torch.arange(len(x), device=x.device), last])
        elif not features_only:
            x = self.decoder.output_layer(x if logits_at is None else x.flatten(0, 1)[logits_at])
        return x, extra

    def _idle(self, patch_images: Tensor | None, code_masks: Tensor | None, head: str | None) -> list[nn.Module]:
        """What a batch with these arguments may not use."""
        if self.cfg.encoder_layerdrop or self.cfg.decoder_layerdrop:
            return [self]
        idle = [module for name, module in self.classification_heads.items() if name != head]
        if patch_images is None:
            idle += self.encoder.for_pictures()
        if code_masks is None or not code_masks.any():
            idle += self.decoder.for_codes()
        elif code_masks.all():
            idle += self.decoder.for_text()
        return idle

    def register_classification_head(self, name: str, num_classes: int, inner_dim: int | None = None) -> None:
        """Adds a head over the last token's features, of the kind `--pooler-classifier`.

        Args:
            name: its name in `forward` and in the state dict.
            num_classes: N.
            inner_dim: width inside an mlp head, D unless given.
        """
        head = MLPHead if self.cfg.pooler_classifier == "mlp" else LinearHead
        self.classification_heads[name] = head(self.cfg, inner_dim or self.cfg.encoder_embed_dim, num_classes)

    def train(self, mode: bool = True) -> OFAModel:
        """Train or eval mode; a frozen stack or backbone stays in eval mode, without dropout, with fixed statistics."""
        super().train(mode)
        backbone = self.encoder.embed_images
        if not any(parameter.requires_grad for parameter in backbone.parameters()):
            backbone.eval()
        if self.cfg.freeze_encoder:
            self.encoder.eval()
        if self.cfg.freeze_decoder:
            self.decoder.eval()
        return self

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Turns an older or official state dict into one of this model, in place; see `checkpoint.upgrade`."""
        checkpoint.upgrade(self, state_dict)

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Loads a checkpoint's weights, upgraded, and says what was missing or unexpected.

        Args:
            state_dict: weights by name, left as it is.
            strict: False lets missing and unexpected names pass, with a warning.
            model_cfg, args: taken for fairseq's sake; not read.

        Raises:
            UserError: the weights are not this model's. Missing ones are let pass by `--allow-missing-weights`.
        """
        state = dict(state_dict)
        self.upgrade_state_dict(state)
        checkpoint.compare(self, state, strict, self.cfg.allow_missing_weights)
        return nn.Module.load_state_dict(self, state, strict and not self.cfg.allow_missing_weights)


class MLPHead(nn.Module):
    """Dropout, a layer with an activation, dropout, scores."""

    def __init__(self, cfg: OFAConfig, inner_dim: int, num_classes: int):
        super().__init__()
        self.dense = nn.Linear(cfg.encoder_embed_dim, inner_dim)
        self.activation = get_activation_fn(cfg.pooler_activation_fn)
        self.dropout = cfg.pooler_dropout
        self.out_proj = nn.Linear(inner_dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """float[B, D] to float[B, N]."""
        x = F.dropout(features, self.dropout, self.training)
        x = F.dropout(self.activation(self.dense(x)), self.dropout, self.training)
        return self.out_proj(x)


class LinearHead(nn.Module):
    """Dropout, scores."""

    def __init__(self, cfg: OFAConfig, inner_dim: int, num_classes: int):
        super().__init__()
        self.dropout = cfg.pooler_dropout
        self.out_proj = nn.Linear(cfg.encoder_embed_dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """float[B, D] to float[B, N]."""
        return self.out_proj(F.dropout(features, self.dropout, self.training))


def _initialise(module: nn.Module, xavier: bool) -> None:
    """BERT's start, as official: N(0, 0.02) for every matrix and table, the pad row included, and no offsets.

    With `xavier`, linear layers start from a uniform distribution that their width decides (Glorot and Bengio 2010).
    The output projection, the one without offsets, is the token matrix and starts as a table does.
    """
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
        if xavier:
            nn.init.xavier_uniform_(module.weight)


def _register(name: str) -> None:
    @register_model_architecture("ofa", name)
    def architecture(cfg: Any) -> None:
        apply_architecture(name, cfg)


for _name in ARCHITECTURES:
    _register(_name)
