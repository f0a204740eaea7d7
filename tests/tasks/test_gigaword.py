"""Summarisation rows and summaries against the official ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.dataset import OFADataset
from ofa_plugin.data.example import collate
from ofa_plugin.data.noise import with_random_tokens
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.tasks.gigaword import GigawordBuilder, as_gigaword, fix_tokenization
from tests.helpers.golden import golden, settings

CASES = golden("dataset_gigaword.json")
ROW = ["The dog - asleep - is a <unk> dog .", "Dog <unk> asleep"]


def builder(tmp_path, codec, row, training=True, **given):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    store = TSVStore(str(tmp_path / "rows.tsv"), GigawordBuilder.columns, None, GigawordBuilder.required)
    return GigawordBuilder(store, codec, settings(**{"noise_ratio": 0.0, **given}), training)


def only(made):
    [example] = made.examples(0, made.store[0], np.random.default_rng(0))
    return example


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES["cases"], ids=["whole", "cut"])
def test_rows_match_the_official_dataset(shared, released, tmp_path, case):
    codec, expected = released(shared("bpe/gpt2")), case["example"]
    instruction = len(codec.encode(' what is the summary of article " "?'))
    whole = case["max_src_length"] > instruction
    # Officially a limit of 6 tokens leaves nothing but six tokens of the instruction; ours come on top of it.
    room = case["max_src_length"] if whole else instruction + case["max_src_length"]
    example = only(builder(tmp_path, codec, case["row"], max_src_length=room, max_tgt_length=case["max_tgt_length"]))
    batch = collate([example], codec.bos, codec.pad)
    assert batch["target"].tolist() == [expected["target"]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [expected["prev_output_tokens"]]
    assert example.reference == expected["target_str"]
    if whole:
        assert example.source.tolist() == expected["source"]
    else:
        assert example.source.tolist()[: len(expected["source"]) - 1] == expected["source"][:-1]
        assert codec.decode(example.source) == ' what is the summary of article " factory orders for goods rose # "?'


@pytest.mark.parity
def test_chinese_rows_match_the_official_dataset(shared, tmp_path):
    case = golden("bert_cn.json")["examples"]["gigaword"]
    codec = Codec.build("bert", str(shared("bpe/bert_cn")))
    example = only(builder(tmp_path, codec, ["新闻内容", "标题"]))
    assert codec.decode(example.source) == case["source_text"]
    assert example.target.tolist() == case["target"]


@pytest.mark.parity
@pytest.mark.parametrize("case", golden("gigaword_fix_tokenization.json")["cases"], ids=lambda case: case["in"])
def test_words_are_put_together_as_officially(case):
    assert fix_tokenization(case["in"]) == case["out"]


@pytest.mark.parity
@pytest.mark.parametrize("case", golden("gigaword_fix_tokenization.json")["postprocess"], ids=lambda case: case["in"])
def test_summaries_are_written_as_in_the_official_validation(case):
    assert as_gigaword(case["in"]) == case["valid_step"]


def test_the_instruction_stays_whole_around_a_cut_article(codec, tmp_path):
    whole = only(builder(tmp_path, codec, ROW)).source.tolist()
    before, after = (codec.encode(part).tolist() for part in (' what is the summary of article "', ' "?'))
    fixed = len(before) + len(after)
    for room in (1, 3):
        cut = only(builder(tmp_path, codec, ROW, max_src_length=fixed + room)).source.tolist()
        assert cut == [*whole[: 1 + len(before) + room], *after, codec.eos]
    with pytest.raises(UserError, match=f"--max-src-length {fixed}: the instruction alone has {fixed} tokens; give at"):
        builder(tmp_path, codec, ROW, max_src_length=fixed)


def test_the_decoder_is_shown_random_tokens_in_training_only(codec, tmp_path):
    clean, noisy = (only(builder(tmp_path, codec, ROW, noise_ratio=ratio)) for ratio in (0.0, 1.0))
    assert clean.previous is None and torch.equal(clean.target, noisy.target)
    shown = collate([noisy], codec.bos, codec.pad)["net_input"]["prev_output_tokens"][0]
    assert shown[0] == codec.bos and len(shown) == len(noisy.target)
    assert (shown[1:] != noisy.target[:-1]).any() and shown[1:].min() >= 4 and shown[1:].max() <= codec.mask
    assert only(builder(tmp_path, codec, ROW, training=False, noise_ratio=1.0)).previous is None


def test_noise_follows_from_seed_epoch_and_row(codec, tmp_path):
    made = builder(tmp_path, codec, ROW, noise_ratio=0.5)
    shown = {}
    for seed, epoch in ((1, 1), (1, 1), (1, 2), (2, 1)):
        [example] = OFADataset(made, "train", seed, True, 0, 100).item(0, epoch).examples
        shown.setdefault((seed, epoch), set()).add(tuple(example.previous.tolist()))
    assert [len(seen) for seen in shown.values()] == [1, 1, 1]
    assert len(set.union(*shown.values())) == 3


@pytest.mark.parity
def test_noise_is_spread_as_officially():
    stats = CASES["noise_stats"]
    ids = torch.full((20000,), 7)
    noisy = with_random_tokens(ids, stats["ratio"], stats["randint_high_exclusive"], np.random.default_rng(0))
    changed = noisy[noisy != ids]
    # four standard deviations of a share of 20000, which the official number has too
    assert len(changed) / len(ids) == pytest.approx(stats["observed"], abs=0.016)
    assert changed.min() >= stats["randint_low"] and changed.max() < stats["randint_high_exclusive"]
    assert changed.float().mean() == pytest.approx((4 + 50265) / 2, rel=0.03) and (ids == 7).all()


@pytest.mark.parametrize("row", [["a dog", ""], ["a dog"], ["a dog", " "]])
def test_a_row_without_summary_is_answered_but_not_learned(codec, tmp_path, row):
    example = only(builder(tmp_path, codec, row, training=False))
    assert example.reference is None and example.target.tolist() == [codec.pad] and example.uniq_id == "1"
    with pytest.raises(BadRow, match="rows.tsv:1: target: it is empty: write the summary, or leave the row out"):
        only(builder(tmp_path, codec, row))


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_article_is_a_bad_row(codec, tmp_path, training):
    with pytest.raises(BadRow, match="rows.tsv:1: source: it is empty: write the article, or leave the row out"):
        only(builder(tmp_path, codec, ["...", "a dog"], training))
