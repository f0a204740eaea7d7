"""Texts, ids and answers as OFA's files can hold them: what is mended, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import MARK, SEPARATOR
from .report import RowProblem

WHITE_SPACE = "texts whose white space became single spaces"
AMPERSANDS = f"texts in which {SEPARATOR!r} became '&'"
EMPTY_ANSWERS = "questions with an empty answer among others, left out"

_AMPERSANDS = re.compile("&{2,}")
_ENOUGH = 3  # of ten annotators: as many as this agree with an answer in full (VQA challenge)
_ANNOTATORS = 10
_FAR = 1e9  # pixels


def tidy(value: object, name: str, changes: set[str], separators: bool = True) -> str:
    """One line of text: every run of white space one space, none at the ends, `&&` made `&`.

    White space is what Unicode calls so: tabs, line ends, U+2028, no-break spaces.

    Args:
        value: what the record holds.
        name: what it is, for the message.
        changes: takes the kinds of change that were made.
        separators: whether its column has `&&` between items; else it may stay.

    Raises:
        RowProblem: no text, an empty one, or one with half a surrogate pair, which no file can hold.
    """
    if not isinstance(value, str):
        found = "missing" if value is None else f"{_short(value)}, which is no text"
        raise RowProblem(f"{name} is {found}", f"write the {name} in double quotes")
    text = " ".join(value.split())
    if text != value:
        changes.add(WHITE_SPACE)
    if not text:
        raise RowProblem(f"{name} is empty", "write one, or delete the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise RowProblem(f"{name} holds {half}, half a character", "write the whole character") from None
    if separators and SEPARATOR in text:
        text = _AMPERSANDS.sub("&", text)
        changes.add(AMPERSANDS)
    return text


def tidy_id(value: object, default: str, changes: set[str]) -> str:
    """An id as text: `5` and `"05"` stay two ids; `default` where there is none."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowProblem(f"id {_short(value)} is neither a text nor an integer", "write one of these")
    return tidy(str(value), "id", changes)


def tidy_names(value: object, changes: set[str]) -> list[str]:
    """Names of objects, in lower case, each once."""
    if not isinstance(value, list):
        raise RowProblem(f"objects is {_short(value)}, which is no list", 'write it as ["dog", "ball"]')
    return list(dict.fromkeys(tidy(name, "object", changes).lower() for name in value))


def tidy_box(value: object, sized: bool) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in pixels, to a thousandth.

    Args:
        value: four numbers.
        sized: they are x, y, width, height, as COCO has them.
    """
    names = "x,y,width,height" if sized else "x0,y0,x1,y1"
    if not isinstance(value, list) or len(value) != 4:
        raise RowProblem(f"box {_short(value)} is no list of four numbers", f"write [{names}] in pixels")
    if not all(type(number) in (int, float) and abs(number) < _FAR for number in value):  # also refuses nan
        raise RowProblem(f"box {_short(value)} holds something that is no pixel", f"write [{names}] in pixels")
    x0, y0, x1, y1 = value
    if sized:
        if x1 < 0 or y1 < 0:
            raise RowProblem(f"box {_short(value)} has a negative width or height", f"write [{names}] in pixels")
        x1, y1 = x0 + x1, y0 + y1
    return round(x0, 3), round(y0, 3), round(x1, 3), round(y1, 3)


def box_text(box: Sequence[float]) -> str:
    """`x0,y0,x1,y1` without superfluous zeros."""
    return ",".join(f"{number:.3f}".rstrip("0").rstrip(".") for number in box).replace("-0,", "0,")


def confidences(record: Mapping[str, Any], changes: set[str]) -> dict[str, float]:
    """A question's answers and the confidence of each, the highest first.

    `answer` is sure. `answers` as a dict says the confidences. As a list it holds one answer for each annotator, as in
    VQAv2: of ten, 1, 2, 3, 4 or more votes give 0.3, 0.6, 0.9, 1.0, the mean of min(1, agreeing / 3) over the ten ways
    to leave one annotator out. For another number of annotators votes count by their share.

    Raises:
        RowProblem: no answer, an empty one, a confidence outside 0..1, or an answer that holds `|!+`.
    """
    answers = record.get("answers")
    if answers is None:
        answers = record.get("answer", record.get("multiple_choice_answer"))
        if answers is None:
            raise RowProblem("no answer", 'give "answer": text, or "answers": a list or {answer: confidence}')
    if isinstance(answers, str):
        return {_answer(answers, changes): 1.0}
    if isinstance(answers, dict):
        found: dict[str, float] = {}
        for answer, confidence in answers.items():
            if not isinstance(confidence, (int, float)) or isinstance(confidence, bool) or not 0 <= confidence <= 1:
                reason = f"confidence {_short(confidence)} of answer {answer!r} is no number in 0..1"
                raise RowProblem(reason, "write one, such as 0.6")
            answer = _answer(answer, changes)
            found[answer] = max(found.get(answer, 0.0), round(float(confidence), 4))
    elif isinstance(answers, list):
        found = _votes(answers, changes)
    else:
        raise RowProblem(f"answers is {_short(answers)}", "write a list, or {answer: confidence}")
    if not found:
        raise RowProblem("no answer", "write one, or delete the row")
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def answers_cell(answers: Mapping[str, float]) -> str:
    """`1.0|!+yes&&0.3|!+no`."""
    return SEPARATOR.join(f"{confidence}{MARK}{answer}" for answer, confidence in answers.items())


def _votes(answers: list[Any], changes: set[str]) -> dict[str, float]:
    votes: dict[str, int] = {}
    for answer in answers:
        answer = answer.get("answer") if isinstance(answer, dict) else answer
        if isinstance(answer, str) and not answer.strip():
            changes.add(EMPTY_ANSWERS)
            continue
        answer = _answer(answer, changes)
        votes[answer] = votes.get(answer, 0) + 1
    most_first = sorted(votes.items(), key=lambda item: -item[1])  # five and four votes are both 1.0
    share = _ENOUGH / _ANNOTATORS
    return {answer: min(1.0, round(share * count * _ANNOTATORS / len(answers), 4)) for answer, count in most_first}


def _answer(value: object, changes: set[str]) -> str:
    answer = tidy(value, "answer", changes)
    if MARK in answer:
        raise RowProblem(f"answer {answer!r} holds {MARK}, which separates confidence and answer", f"remove the {MARK}")
    return answer


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
