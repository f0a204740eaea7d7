"""The model's flags as fairseq's command line sees them."""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import fields

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import build_model
from omegaconf import OmegaConf

from ofa_plugin.errors import UserError
from ofa_plugin.models.ofa.config import ALWAYS_SO, ARCHITECTURES, SWITCHED_ON, UNREAD, OFAConfig, resolve
from tests.helpers.small_model import build_small, small_dictionary


def from_command_line(*flags: str) -> OFAConfig:
    """What `build_model` makes of a command line."""
    arguments = ["data", "--task", "translation", *flags]
    parsed = options.parse_args_and_arch(options.get_training_parser(), arguments)
    return resolve(convert_namespace_to_omegaconf(parsed).model)


def test_no_flag_is_on_by_default():
    assert not [f.name for f in fields(OFAConfig) if f.default is True]  # fairseq would make it an off-switch


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_arch_fills_its_row_and_switches(arch: str):
    cfg = from_command_line("--arch", arch)
    assert {key: getattr(cfg, key) for key in ARCHITECTURES[arch]} == ARCHITECTURES[arch]
    switches = {f.name for f in fields(OFAConfig) if f.default is False and getattr(cfg, f.name) is True}
    assert switches == set(SWITCHED_ON[arch])
    assert len(switches) == (1 if arch == "ofa_nano" else 4)


def test_official_switches_given_as_well_stay_on():
    cfg = from_command_line("--arch", "ofa_tiny", "--scale-attn", "--scale-fc", "--scale-heads", "--disable-entangle")
    assert all(getattr(cfg, key) is True for key in SWITCHED_ON["ofa_tiny"])


def test_only_nano_sees_positions_in_its_inputs_and_its_older_checkpoints_do_not():
    assert [arch for arch in ARCHITECTURES if from_command_line("--arch", arch).entangle_position_embedding] == [
        "ofa_nano"
    ]
    assert from_command_line("--arch", "ofa_base", "--entangle-position-embedding").entangle_position_embedding is True
    older = resolve({"_name": "ofa_nano", "entangle_position_embedding": False})
    assert older.entangle_position_embedding is False


def test_a_flag_wins_over_the_arch():
    cfg = from_command_line("--arch", "ofa_nano", "--max-source-positions", "80", "--relu-dropout", "0.3")
    assert (cfg.max_source_positions, cfg.max_target_positions, cfg.activation_dropout) == (80, 256, 0.3)
    assert from_command_line("--arch", "ofa_nano", "--encoder-embed-dim", "64").decoder_embed_dim == 64


def test_unread_official_flags_are_named_in_one_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        flags = ["--encoder-learned-pos", "--quant-noise-pq", "0.1", "--adaptive-softmax-cutoff", "1,2"]
        from_command_line("--arch", "ofa_tiny", *flags, *(f"--{name}" for name in ALWAYS_SO))
    named = [r.getMessage() for r in caplog.records if "nothing reads" in r.getMessage()]
    assert len(named) == 1
    assert named[0].endswith(": --encoder-learned-pos --adaptive-softmax-cutoff --quant-noise-pq")


def test_official_namespace_of_a_checkpoint_resolves_without_a_warning(caplog: pytest.LogCaptureFixture):
    official = Namespace(_name="ofa_large", arch="ofa_large", encoder_embed_dim=1024, adaptive_softmax_cutoff=None)
    with caplog.at_level(logging.WARNING):
        cfg = resolve(official)
    assert (cfg.encoder_layers, cfg.resnet_type, cfg.scale_heads) == (12, "resnet152", True)
    assert not caplog.records


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"_name": "ofa"}, "--arch ofa .*--encoder-embed-dim"),
        ({"_name": "ofa_tiny", "decoder_embed_dim": 128}, "--decoder-embed-dim 128 .*--encoder-embed-dim 256"),
        ({"_name": "ofa_tiny", "decoder_attention_heads": 7}, "--decoder-attention-heads 7 .*256"),
        ({"_name": "ofa_nano", "code_image_size": 256}, "--code-image-size 256 .*32 codes .*--image-bucket-size is 16"),
        ({"_name": "ofa_tiny", "pooler_classifier": "deep"}, "--pooler-classifier deep"),
    ],
)
def test_impossible_configuration_is_refused_by_flag(wrong: dict, named: str):
    with pytest.raises(UserError, match=named):
        resolve(Namespace(**wrong))


@pytest.mark.parametrize("kind", ["ViT-L/14", "resnet51"])
def test_unknown_backbone_is_refused_with_all_that_there_are(kind: str):
    named = f"--resnet-type {kind} is unknown: take one of resnet18, .*resnet152, resnet_nano, ViT-B/16$"
    with pytest.raises(UserError, match=named):
        build_small(recipe=None, resnet_type=kind)


def test_fairseq_builds_from_a_configuration_and_again_from_the_one_it_saved():
    parsed = options.parse_args_and_arch(
        options.get_training_parser(), ["data", "--task", "translation", "--arch", "ofa_nano", "--encoder-layers", "1"]
    )
    cfg = convert_namespace_to_omegaconf(parsed).model
    task = Namespace(source_dictionary=small_dictionary(), target_dictionary=small_dictionary())
    model = build_model(cfg, task)
    assert (len(model.encoder.layers), len(model.decoder.layers), model.max_positions()) == (1, 3, (256, 256))
    saved = OmegaConf.create(OmegaConf.to_container(cfg))  # plain types, as in a checkpoint
    del saved["allow_missing_weights"]  # a field that came later
    again = build_model(saved, task, from_checkpoint=True)
    again.load_state_dict(model.state_dict(), strict=True, model_cfg=saved)
    assert torch.equal(again.encoder.layers[0].fc1.weight, model.encoder.layers[0].fc1.weight)


def test_every_unread_flag_is_foreign_to_the_configuration():
    known = {f.name for f in fields(OFAConfig)}
    assert not known & {name.replace("-", "_") for name in (*UNREAD, *ALWAYS_SO)}
