"""Words as caption metrics count them."""

from __future__ import annotations

import pytest

from ofa_plugin.tasks.metrics import tokenize


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("It's a dog's ball.", "it 's a dog 's ball"),
        ("They don't run, isn’t it?", "they do n't run is n't it"),
        ("We cannot; I'm gonna", "we can not i 'm gon na"),
        ("the dogs' bowl", "the dogs bowl"),
        ('a "black-and-white" cat - (asleep)...', "a black-and-white cat asleep"),
        ("at 10:30, 3.5 m & $1,000", "at 10:30 3.5 m & $ 1,000"),
        ("the U.S. flag", "the u.s. flag"),
        ("café naïve", "café naïve"),
        ("the U.S.A flag, a D.V.D player", "the u.s.a flag a d.v.d player"),
        ("snake_case 3-way", "snake_case 3-way"),
        (" \t\n", ""),
    ],
)
def test_tokens_as_the_penn_treebank_splits_them(caption, tokens):
    assert tokenize(caption) == tokens.split()


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("一只狗在草地上。", "一 只 狗 在 草 地 上"),
        ("一 只 狗 在 草 地 上 。", "一 只 狗 在 草 地 上"),  # as a "bert" vocabulary decodes
        ("两只Cats在2楼", "两 只 cats 在 2 楼"),
        ("“红色”的T恤，3.5元！（新）", "红 色 的 t 恤 3.5 元 新"),
        ("iPhone手机 black-and-white照片", "iphone 手 机 black-and-white 照 片"),
        ("東京タワーの時々、〆", "東 京 タ ワ ー の 時 々 〆"),
        ("𠮷野家", "𠮷 野 家"),
        ("빨간 버스.", "빨간 버스"),
    ],
)
def test_chinese_and_japanese_are_read_character_by_character(caption, tokens):
    assert tokenize(caption) == tokens.split()
