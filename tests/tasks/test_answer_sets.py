"""Where a closed answer set comes from, what a checkpoint has of it, and the tree that is kept of a large one."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ofa_plugin.errors import UserError
from ofa_plugin.models.generation import Trie
from ofa_plugin.tasks import answering
from ofa_plugin.tasks.vqa import VQAConfig, VQATask


@pytest.fixture
def setup(world, monkeypatch, tmp_path):
    """Sets a task up with these options, as training does; a set of more than 40 characters is a large one."""
    monkeypatch.setattr(answering, "CARRIED", 40)
    monkeypatch.setattr(answering, "KEPT_FROM", 4)
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))

    def setup(**options):
        given = {"bpe": "sentencepiece", "bpe_dir": str(world.root / "bpe"), "num_bins": 10, "code_dict_size": 8}
        cfg = OmegaConf.create({**OmegaConf.to_container(OmegaConf.structured(VQAConfig), resolve=False)})
        unset = {"seed": 1, "path": None, "results_path": None, "save_dir": str(tmp_path), "input": "-"}
        unset |= {"gen_subset": "test", "train_subset": "train", "valid_subset": "valid", "disable_validation": False}
        unset |= {"best_checkpoint_metric": "loss", "max_update": 0}
        unset |= {"max_epoch": 0, "update_freq": [1], "store_ema": False, "_name": "vqa_gen"}
        return VQATask.setup_task(OmegaConf.merge(cfg, unset, given, options))

    return setup


WORDS = ["red", "green", "blue", "a large red circle", "a small green square", "two"]


def test_a_small_set_goes_whole_into_the_checkpoint(setup, tmp_path):
    (tmp_path / "answers.txt").write_text("red\ngreen\n")
    cfg = setup(ans2label_file=str(tmp_path / "answers.txt")).cfg
    assert json.loads(cfg.answers) == ["red", "green"] and cfg.ans2label_file is cfg.answers_file is None
    (tmp_path / "answers.txt").unlink()
    assert setup(answers=cfg.answers).answer_set.answers == {"red", "green"}


def test_a_large_set_is_found_again_by_its_path_and_content(setup, tmp_path):
    file = tmp_path / "answers.txt"
    file.write_text("\n".join(WORDS) + "\n")
    cfg = setup(ans2label_file=str(file)).cfg
    assert cfg.answers is None and cfg.answers_file == str(file) and len(cfg.answers_digest) == 64
    remembered = {"answers_file": cfg.answers_file, "answers_digest": cfg.answers_digest}
    again = setup(**remembered)
    assert again.answer_set.answers == set(WORDS) and again.cfg.answers_digest == cfg.answers_digest
    file.write_text("\r\n".join(WORDS))  # the same answers, written in another way
    assert setup(**remembered).answer_set.answers == set(WORDS)
    file.write_text("\n".join(WORDS[1:]) + "\n")
    with pytest.raises(UserError, match=r"answers.txt: the answer set of .* has changed; give .* --ans2label-file"):
        setup(**remembered)
    file.unlink()
    with pytest.raises(UserError, match=r"answers.txt: the answer set of .* is not there any more"):
        setup(**remembered)
    (tmp_path / "other.txt").write_text("\n".join(WORDS) + "\n")  # which the command line may always name
    assert setup(**remembered, ans2label_file=str(tmp_path / "other.txt")).answer_set.answers == set(WORDS)


def test_the_tree_of_a_large_set_is_made_once(setup, tmp_path, monkeypatch, caplog):
    file = tmp_path / "answers.txt"
    file.write_text("\n".join(WORDS) + "\n")
    made = setup(ans2label_file=str(file)).trie
    [kept] = (tmp_path / "cache").iterdir()
    calls = []
    encode = answering.token_paths
    monkeypatch.setattr(answering, "token_paths", lambda *given: calls.append(1) or encode(*given))
    again = setup(ans2label_file=str(file)).trie
    assert not calls
    assert torch.equal(again.keys, made.keys) and torch.equal(again.ends, made.ends)
    setup(ans2label_file=str(file), max_tgt_length=2)  # answers are cut there: another tree
    assert len(calls) == 1 and len(list((tmp_path / "cache").iterdir())) == 2
    kept.write_bytes(kept.read_bytes()[:50])
    assert torch.equal(setup(ans2label_file=str(file)).trie.keys, made.keys) and len(calls) == 2
    setup(ans2label_file=str(file))
    assert len(calls) == 2  # it was written again
    (tmp_path / "cache" / "file").touch()
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache" / "file"))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(setup(ans2label_file=str(file)).trie.keys, made.keys)
    assert "cannot be kept" in caplog.text and "OFA_CACHE" in caplog.text


def test_answers_of_each_row_and_a_common_set_exclude_each_other(setup):
    assert setup(multiple_choice=True).answer_set is None
    for other in ({"ans2label_dict": '["red"]'}, {"ans2label_file": "answers.txt"}, {"unconstrained_training": True}):
        flag = f"--{next(iter(other)).replace('_', '-')}"
        with pytest.raises(UserError, match=f"{flag} does not go with --multiple-choice"):
            setup(multiple_choice=True, **other)


def test_what_is_no_tree_is_not_read_as_one(tmp_path):
    np.savez(tmp_path / "other.npz", keys=np.arange(3))
    with pytest.raises(ValueError, match=r"other\.npz"):
        Trie.read(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", keys=np.array([{}], object), ends=np.arange(3))
    with pytest.raises(ValueError, match="allow_pickle"):
        Trie.read(tmp_path / "objects.npz")
