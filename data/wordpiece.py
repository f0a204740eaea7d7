"""BERT's tokenizer (Devlin et al. 2019): lower-case words and single Chinese characters, cut into known pieces.

What it does to a text is that of transformers' BertTokenizer with do_lower_case, which the released Chinese checkpoints
were trained with, down to its habits: accents are dropped, Hangul falls apart into its letters, and a word of which one
piece is unknown is unknown as a whole.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from .text import space_characters

UNKNOWN = "[UNK]"
CONTINUED = "##"  # how a piece inside a word begins
LONGEST_WORD = 100  # characters; a longer one is unknown
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # these lose their outer spaces


class WordPiece:
    """Text to pieces of a vocabulary and back.

    Args:
        pieces: the vocabulary; a piece's number is its place.

    Raises:
        ValueError: there is no `[UNK]` in it.
    """

    def __init__(self, pieces: Sequence[str]):
        self.numbers = {piece: number for number, piece in enumerate(pieces)}
        if UNKNOWN not in self.numbers:
            raise ValueError(f"a WordPiece vocabulary needs {UNKNOWN}")

    def encode(self, text: str) -> list[int]:
        """Text to numbers; what looks like a special piece (`[MASK]`) is text."""
        return [number for word in words(text) for number in self._pieces(word)]

    def _pieces(self, word: str) -> list[int]:
        """The longest known piece at the start of the word, then of the rest; `[UNK]` where there is none."""
        numbers, start = [], 0
        while start < len(word) <= LONGEST_WORD:
            prefix = CONTINUED if start else ""
            known = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self.numbers)
            end = next(known, None)
            if end is None:
                return [self.numbers[UNKNOWN]]
            numbers.append(self.numbers[prefix + word[start:end]])
            start = end
        return numbers or [self.numbers[UNKNOWN]]

    @staticmethod
    def decode(pieces: Iterable[str]) -> str:
        """Pieces to text as officially: a space before each that starts a word, but not before `.?!,` and `'s`.

        `["图", "片", "play", "##ing", "?"]` gives `"图 片 playing?"`.
        """
        text = " ".join(pieces).replace(f" {CONTINUED}", "").strip()
        for spaced in CLEANED:
            text = text.replace(spaced, spaced.strip())
        return text


def words(text: str) -> list[str]:
    """BERT's basic tokenization: lower-case words without accents, punctuation marks and Chinese characters alone."""
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            kept.append(" ")
        elif category[0] != "C" and character != "\ufffd":  # control and format characters, and what Unicode lacks
            kept.append(character.lower())  # one by one: at a word's end, a whole word's sigma would be another
    decomposed = unicodedata.normalize("NFD", space_characters("".join(kept)))
    return "".join(f" {c} " if _is_punctuation(c) else c for c in decomposed if unicodedata.category(c) != "Mn").split()


def _is_punctuation(character: str) -> bool:
    """Unicode's punctuation, and all of ASCII that is neither letter, digit nor space (`$`, `^`, `+` ...)."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P"
