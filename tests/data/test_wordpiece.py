"""BERT's tokenizer, piece by piece. tests/data/test_codec.py compares it with the official one's output."""

from __future__ import annotations

import pytest

from ofa_plugin.data.wordpiece import LONGEST_WORD, WordPiece, words

PIECES = ["[UNK]", "[MASK]", "play", "##ing", "##s", "##in", "##g", "p", "##l", "图", "片", "?", "a", "##a", "##"]


@pytest.fixture
def tokenizer() -> WordPiece:
    return WordPiece(PIECES)


def pieces(tokenizer: WordPiece, text: str) -> list[str]:
    return [PIECES[number] for number in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello World", ["hello", "world"]),
        ("Café naïve Ü", ["cafe", "naive", "u"]),
        ("图片2只猫", ["图", "片", "2", "只", "猫"]),
        ("\u3400\U00020000\uf900", ["\u3400", "\U00020000", "\u8c48"]),  # rare blocks; the last is only another 豈
        ("かな カナ", ["かな", "カナ"]),  # Japanese syllables are letters, and
        ("が", ["か"]),  # lose their voicing mark as an accent
        ("don't $5_x^y—z，。", ["don", "'", "t", "$", "5", "_", "x", "^", "y", "—", "z", "，", "。"]),
        ("a\x00b\ufffdc\u200bd\x1fe", ["abcde"]),  # control and format characters vanish
        ("a\tb\nc\rd\u00a0e\u3000f\u2028g", list("abcdefg")),
        ("ΟΔΟΣ", ["οδοσ"]),  # letter by letter: no final sigma
        ("😀x 👍", ["😀x", "👍"]),  # symbols are no punctuation
        (" \n ", []),
    ],
)
def test_words(text: str, expected: list[str]):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("playing plays", ["play", "##ing", "play", "##s"]),
        ("pling", ["p", "##l", "##ing"]),  # the longest piece first: ##ing, not ##in ##g
        ("playx", ["[UNK]"]),  # the whole word, not only its tail
        ("图片?x", ["图", "片", "?", "[UNK]"]),
        ("##", ["[UNK]", "[UNK]"]),  # two marks, each a word
        ("[MASK]", ["[UNK]"] * 3),
        ("a" * LONGEST_WORD, ["a", *["##a"] * (LONGEST_WORD - 1)]),
        ("a" * (LONGEST_WORD + 1), ["[UNK]"]),
        ("", []),
    ],
)
def test_pieces(tokenizer: WordPiece, text: str, expected: list[str]):
    assert pieces(tokenizer, text) == expected


@pytest.mark.parametrize(
    ("given", "text"),  # as transformers' BertTokenizer decodes
    [
        (["图", "片", "?"], "图 片?"),
        (["play", "##ing", ".", "a"], "playing. a"),
        (["do", "n", "'", "t", "it", "'", "s"], "don't it's"),
        (["we", "'ve", "we", "'re", "i", "'m", "do", "n't"], "we've we're i'm don't"),
        (["##ing", "a", "##"], "##ing a"),
        (["图", "<bin_3>", "<mask>"], "图 <bin_3> <mask>"),
        ([], ""),
    ],
)
def test_decoding(tokenizer: WordPiece, given: list[str], text: str):
    assert tokenizer.decode(given) == text


def test_a_vocabulary_needs_its_unknown_piece():
    with pytest.raises(ValueError, match=r"needs \[UNK\]"):
        WordPiece(["a"])
