import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.noise import LENGTHS, Noise, excerpt
from ofa_plugin.errors import UserError
from tests.helpers.golden import golden

GOLDEN = golden("text_infilling.json")
BOS, EOS, MASK = 0, 2, 100
VARIANTS = {
    "replace_length=-1": {"replace_length": -1},
    "replace_length=0": {"replace_length": 0},
    "mask_length=word": {"mask_length": "word"},
    "mask_length=subword": {"mask_length": "subword"},
    "random_ratio=0.1": {"random_ratio": 0.1},
    "mask_ratio=0.5": {"mask_ratio": 0.5},
}
CASES = [("stats", name, {}, case) for name, case in GOLDEN["stats"].items()] + [
    (variant, name, VARIANTS[variant], case)
    for variant, cases in GOLDEN["variants"].items()
    for name, case in cases.items()
]
DRAWS = 2000


@pytest.fixture(scope="module")
def codec_of():
    codecs = {}

    def build(folder) -> Codec:
        return codecs.setdefault(folder, Codec.build("gpt2", str(folder)))

    return build


def text(*words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and word starts of a text whose words have so many tokens each, the tokens numbered from 10."""
    starts = [False] + [token == 0 for length in words for token in range(length)] + [False]
    return torch.tensor([BOS, *range(10, 8 + len(starts)), EOS]), torch.tensor(starts)


# Official numbers


@pytest.mark.parity
def test_span_lengths_are_official():
    wanted = pytest.approx(GOLDEN["poisson_probs"], rel=1e-7, abs=5e-9)  # of 32 bits, written with eight digits
    assert Noise(MASK).span_lengths == wanted


@pytest.mark.parity
@pytest.mark.parametrize(("variant", "name", "flags", "case"), CASES, ids=[f"{v}-{n}" for v, n, _, _ in CASES])
def test_noise_is_distributed_as_official(shared, codec_of, variant, name, flags, case):
    """Means within four standard errors of the official sample and ours together."""
    codec = codec_of(shared("bpe/gpt2"))
    ids = torch.tensor([codec.bos, *codec.encode(GOLDEN["stats"][name]["text"]).tolist(), codec.eos])
    starts = codec.word_starts(ids)
    noise, draw = Noise(codec.mask, **flags), np.random.default_rng(0)
    lengths, masks, kept, adjacent = [], [], [], []
    for _ in range(DRAWS):
        noised, removed = noise(ids, starts, draw)
        is_mask = noised == codec.mask
        lengths.append(len(noised))
        masks.append(int(is_mask.sum()))
        kept.append(int((~removed).sum()) - 2)
        adjacent.append(bool((is_mask[1:] & is_mask[:-1]).any()))
    per_draw = 4 * (1 / DRAWS + 1 / case["n"]) ** 0.5
    assert np.mean(lengths) == pytest.approx(case["mean_out_len"], abs=per_draw * case["std_out_len"] + 5e-4)
    assert np.mean(masks) == pytest.approx(case["mean_masks"], abs=per_draw * case["std_masks"] + 5e-4)
    share = case["frac_with_adjacent_masks"]
    assert np.mean(adjacent) == pytest.approx(share, abs=per_draw * math.sqrt(share * (1 - share)) + 0.005)
    assert np.std(lengths) == pytest.approx(case["std_out_len"], abs=0.12 * case["std_out_len"] + 0.05)
    if "random_ratio" not in flags:  # official counts random tokens as kept ones
        assert np.mean(kept) == pytest.approx(case["mean_kept_tokens"], abs=per_draw * np.std(kept) + 5e-4)
    assert min(masks) >= case["min_masks"] - 1 and min(lengths) >= case["min_out_len"] - 3


def test_a_long_text_is_its_second_window():
    full = torch.arange(1920)
    assert excerpt(full).tolist() == list(range(256, 512))  # text_truncation in pretrain_examples.json
    assert excerpt(full[:300]).tolist() == list(range(44, 300))
    assert excerpt(full[:256]).tolist() == list(range(256)) and len(excerpt(full[:0])) == 0


# What is true of every draw


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=12),
    st.sampled_from(LENGTHS),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 1000),
)
def test_what_is_not_removed_is_still_there_in_order(words, length, replace, ratio, random_ratio, seed):
    ids, starts = text(*words)
    before = ids.clone(), starts.clone()
    noise = Noise(MASK, ratio, length, 3.0, replace, random_ratio)
    noised, removed = noise(ids, starts, np.random.default_rng(seed))
    assert torch.equal(ids, before[0]) and torch.equal(starts, before[1])  # the caller's stay
    assert noised.dtype == torch.int64 and removed.dtype == torch.bool and removed.shape == ids.shape
    assert noised[0] == BOS and noised[-1] == EOS and not removed[0] and not removed[-1]
    assert set(noised[1:-1].tolist()) <= set(range(4, MASK + 1))
    if not random_ratio:
        assert noised[noised != MASK].tolist() == ids[~removed].tolist()
    if random_ratio == 1 and replace:
        assert MASK not in noised
    units = torch.cumsum(starts, 0) if length != "subword" else torch.arange(len(ids))
    whole = [
        units[removed].tolist().count(unit) == units[1:-1].tolist().count(unit) for unit in set(units[removed].tolist())
    ]
    assert all(whole)  # a word is removed whole or not at all
    count = len(ids) - 2 if length == "subword" else len(words)
    budget = math.ceil(round(count * ratio, 6))
    assert (
        (len(whole) == budget)
        if length != "span-poisson"
        else (len(whole) <= budget and (len(whole) > 0 or not budget))
    )


def test_the_same_draws_give_the_same_noise():
    ids, starts = text(*[2] * 20)
    first, again = (Noise(MASK)(ids, starts, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first.ids, again.ids) and torch.equal(first.removed, again.removed)
    others = {tuple(Noise(MASK)(ids, starts, np.random.default_rng(seed)).ids.tolist()) for seed in range(20)}
    assert len(others) > 15


def test_no_ratio_and_no_word_leave_the_text_alone():
    for ids, starts, noise in (
        (*text(2, 1, 3), Noise(MASK, mask_ratio=0.0)),
        (*text(), Noise(MASK)),
        (torch.tensor([BOS, 11, 12, EOS]), torch.zeros(4, dtype=torch.bool), Noise(MASK)),
    ):
        noised, removed = noise(ids, starts, np.random.default_rng(0))
        assert torch.equal(noised, ids) and not removed.any()
    assert GOLDEN["empty_text"] == [BOS, EOS]


def test_ratio_one_removes_every_word_drawn_as_a_word():
    ids, starts = text(2, 1, 3)
    noised, removed = Noise(MASK, mask_ratio=1.0, mask_length="word")(ids, starts, np.random.default_rng(0))
    assert noised.tolist() == [BOS, MASK, MASK, MASK, EOS] and removed.tolist() == [False] + [True] * 6 + [False]


def test_a_single_word_is_always_masked_whole():
    ids, starts = text(3)
    noise = Noise(MASK)
    for seed in range(50):
        noised, removed = noise(ids, starts, np.random.default_rng(seed))
        assert set(noised.tolist()) == {BOS, MASK, EOS} and removed[1:-1].all()


def test_what_stands_before_the_first_word_is_never_masked():
    ids, starts = torch.tensor([BOS, 50, 11, EOS]), torch.tensor([True, False, True, True])  # bos and eos are no words
    for seed in range(30):
        noised, removed = Noise(MASK, mask_ratio=1.0)(ids, starts, np.random.default_rng(seed))
        assert removed.tolist() == [False, False, True, False] and noised[noised != MASK].tolist() == [BOS, 50, EOS]


def test_thirty_words_at_a_tenth_are_three():
    """0.1 x 30 is more than 3 in 64 bits, which must not count as a fourth word."""
    ids, starts = text(*[1] * 30)
    _, removed = Noise(MASK, mask_ratio=0.1, mask_length="word")(ids, starts, np.random.default_rng(0))
    assert removed.sum() == 3


def test_long_spans_do_not_keep_their_table_short():
    """Official ends the table at the first probability below 1e-7, which for a mean of 20 is that of no word."""
    table = Noise(MASK, poisson_lambda=20.0).span_lengths
    assert table.sum() == pytest.approx(1, abs=1e-6) and table.argmax() in (19, 20)
    ids, starts = text(*[1] * 50)
    assert Noise(MASK, poisson_lambda=20.0)(ids, starts, np.random.default_rng(0)).removed.any()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"mask_ratio": 1.5}, "--mask-ratio 1.5: give a share from 0 to 1"),
        ({"mask_ratio": float("nan")}, "--mask-ratio nan: give a share from 0 to 1"),
        ({"random_ratio": -0.1}, "--random-ratio -0.1: give a share from 0 to 1"),
        ({"mask_length": "span"}, "--mask-length span: choose one of subword, word, span-poisson"),
        ({"replace_length": 2}, "--replace-length 2: choose 1 (a mask for a span), 0 (nothing) or -1 (a mask for each"),
        ({"poisson_lambda": 0.0}, "--poisson-lambda 0.0: give a mean span of 0.1 to 100 words"),
        ({"poisson_lambda": math.inf}, "--poisson-lambda inf: give a mean span of 0.1 to 100 words"),
    ],
)
def test_settings_that_make_no_noise_are_refused(flags, says):
    with pytest.raises(UserError) as caught:
        Noise(MASK, **flags)
    assert str(caught.value).startswith(says)


def test_settings_stay_as_they_are():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Noise(MASK).mask_ratio = 0.5
