"""The YAML recipes are the run scripts: both, taken apart by the stock entry points, give one configuration."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import fairseq_cli.hydra_train
import fairseq_cli.train
import pytest
from fairseq import models, utils
from fairseq.dataclass.initialize import add_defaults
from fairseq.distributed import utils as distributed_utils
from omegaconf import OmegaConf

from ofa_plugin.models.ofa.config import ARCHITECTURES, SWITCHED_ON
from ofa_plugin.models.ofa.model import OFAModel
from tests.helpers.stock import ROOT, USER_DIR, ok, run
from tests.test_run_scripts import script

RECIPES = ROOT / "run_scripts" / "hydra"
NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem != "shared")
PLACES = (f"common.user_dir={USER_DIR}", "task.data=/data", "task.bpe_dir=/bpe")


@pytest.fixture
def configuration(tmp_path, monkeypatch):
    """Gives the configuration that `fairseq_cli.train.main` is called with, and in it the model's as it is built."""

    def record(cfg) -> None:
        utils.import_user_module(cfg.common)
        add_defaults(cfg)
        built = []
        with mock.patch.object(OFAModel, "__init__", lambda self, complete, dictionary: built.append(complete)):
            models.build_model(cfg.model, Namespace(source_dictionary=[], target_dictionary=[]))
        whole = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        whole["model"] = asdict(built[0])
        (tmp_path / "cfg.json").write_text(json.dumps(whole))

    def of(entry: str, *words: str) -> dict:
        monkeypatch.setattr(distributed_utils, "call_main", lambda cfg, main: main(cfg))  # fp16 without a GPU
        monkeypatch.setattr(fairseq_cli.train, "main", record)
        monkeypatch.setattr(fairseq_cli.hydra_train, "pre_main", record)
        ok(run(entry, *words, cwd=tmp_path, log=tmp_path / "log"))
        return json.loads((tmp_path / "cfg.json").read_text())

    return of


def of_script(configuration, name: str, **variables: str) -> dict:
    task, _, size = name.rpartition("_")
    printed = script(f"{task}.sh", "train", size, "/data", BPE_DIR="/bpe", **variables)
    return configuration("train", *shlex.split(printed.stdout)[3:])


def of_recipe(configuration, name: str, *overrides: str) -> dict:
    return configuration("hydra_train", "--config-dir", RECIPES, "--config-name", name, *PLACES, *overrides)


def test_there_is_a_recipe_of_each_task_and_size():
    assert NAMES == ["caption_base", "caption_nano", "snli_ve_base", "snli_ve_nano", "vqa_base", "vqa_nano"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_and_its_script_are_one_configuration(configuration, name):
    of_shell = of_script(configuration, name, GPUS="0" if name.endswith("nano") else "1")
    of_yaml = of_recipe(configuration, name)
    for cfg in (of_shell, of_yaml):
        for part in ("checkpoint", "task"):
            cfg[part]["save_dir"] = Path(cfg[part]["save_dir"]).name  # there whole, here from the folder
    assert of_yaml["common"].pop("reset_logging") and not of_shell["common"].pop("reset_logging")
    parts = ("common", "dataset", "optimization", "checkpoint", "distributed_training", "ema")
    for part in (*parts, "task", "model", "criterion", "optimizer", "lr_scheduler"):
        assert of_yaml[part] == of_shell[part], part


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_name_of_a_size_is_the_whole_size(configuration, arch):
    model = of_recipe(configuration, "caption_nano", f"model._name={arch}")["model"]
    assert {key: model[key] for key in ARCHITECTURES[arch]} == ARCHITECTURES[arch]
    assert model["_name"] == arch and all(model[key] is True for key in SWITCHED_ON[arch])


def test_what_the_yaml_says_wins_over_the_size(configuration):
    chosen = ("+model.encoder_layers=1", "+model.linear_init=bert", "+model.encoder_embed_dim=64", "model.dropout=0.3")
    model = of_recipe(configuration, "caption_nano", *chosen)["model"]
    assert (model["encoder_layers"], model["decoder_layers"]) == (1, ARCHITECTURES["ofa_nano"]["decoder_layers"])
    assert (model["linear_init"], model["dropout"]) == ("bert", 0.3)
    assert model["decoder_embed_dim"] == 64  # one token matrix
