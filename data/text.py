"""Clean-up of captions and questions, exactly as the released checkpoints saw them (official data/ofa_dataset.py)."""

from __future__ import annotations

import re
import string

SEPARATOR = "&&"  # between the items of a cell: references, answers, objects
MARK = "|!+"  # between a confidence and its answer

_LEADING = ",.!?*#:;~"  # stripped at the left end only, and before white space is: a leading space protects it
_DASHES_TO_SPACES = str.maketrans("-/", "  ")
_WHITE_RUN = re.compile(r"\s{2,}")  # a single tab stays
CHINESE = re.compile(  # the blocks that BERT takes for Chinese: unified ideographs, extensions A to E, compatibility
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f]"
)
_SIDES = re.compile(
    r"\b(left|right|(left|right)(ward|wards|most)|lft|rt|top|bottom|upper|lower|above|below|under|underneath|beneath|over|"
    r"up|down|(top|bottom|upper|lower)most|north|south|east|west|o'?clock|first|second|third|fourth|last|\d+(st|nd|rd|th))\b"
    "|[左右上下东西南北第]",
    re.IGNORECASE,
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def tidy_caption(text: str, max_words: int | None = None) -> str:
    """A caption in lower case, without leading punctuation, dashes and runs of spaces; `<person>` becomes `person`.

    `"A <person>-shaped  Kite."` gives `"a person shaped kite."`. (Official `pre_caption`.)

    Args:
        text: the caption as written.
        max_words: keep this many words, split at single spaces; None keeps all.
    """
    return _tidy(text, max_words, person=True)


def tidy_question(text: str, max_words: int | None = None) -> str:
    """As `tidy_caption`, but `<person>` stays; no question mark is added. (Official `pre_question`.)"""
    return _tidy(text, max_words, person=False)


def vqa_source(question: str, max_words: int | None = None) -> str:
    """The question as visual question answering feeds it to the encoder: tidy, ` ` before it and `?` at its end."""
    question = tidy_question(question, max_words)
    return f" {question}" if question.endswith("?") else f" {question}?"


def strip_punctuation(text: str) -> str:
    """Deletes ASCII punctuation without a space in its place: `"trees-beyond!"` gives `"treesbeyond"`."""
    return text.translate(_NO_PUNCTUATION)


def names_a_side(text: str) -> bool:
    """Whether a text speaks of a side of the picture, or of an order from one: in a mirror that would be false."""
    return _SIDES.search(text) is not None


def space_characters(text: str) -> str:
    """A space on both sides of each Chinese character, which is a word of its own: `"2只猫"` gives `"2 只  猫 "`."""
    return CHINESE.sub(r" \g<0> ", text)


def _tidy(text: str, max_words: int | None, person: bool) -> str:
    text = text.lower().lstrip(_LEADING).translate(_DASHES_TO_SPACES)
    if person:
        text = text.replace("<person>", "person")
    text = _WHITE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return text if max_words is None else " ".join(text.split(" ")[:max_words])
