"""Captions and answers that do not fit their picture, for image-text matching (official data/pretrain_data).

A negative differs from its positive as the model sees them, that is after `tidy_caption`, and is drawn uniformly from
what differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError
from .text import tidy_caption
from .tsv import TSVStore

CAPTIONS, OBJECTS, ANSWERS = "all_captions.txt", "object.txt", "type2ans.json"
SWAPPED = 0.4  # share of negative captions in which an object is exchanged; the others are another picture's
OTHER, COUNT = "other", "how many"  # the types of answers that have rules of their own

_TRIES = 64  # draws of a random caption before the next one in the file is taken
_COUNTED = re.compile(r"\d{1,9}", re.ASCII)
_REMEDY = (
    "check --neg-sample-dir (by default DATA/negative_sample), or leave `matching` out of --kinds to train without it"
)


class Negatives:
    """The folder `negative_sample` of the official data. Pickles; its captions are read from disk when they are drawn.

    Args:
        folder: holds `all_captions.txt` (a caption a line), `object.txt` (an object's name a line) and `type2ans.json`
            (`{type: [answers]}`, with a type `other`). Blank lines count for nothing.

    Raises:
        UserError: the folder or a file is missing, is empty or has another form.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder, but image-text matching needs it: {_REMEDY}")
        missing = [name for name in (CAPTIONS, OBJECTS, ANSWERS) if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder} lacks {', '.join(missing)}, which image-text matching needs: {_REMEDY}")
        self.captions = TSVStore(folder / CAPTIONS, ["caption"])
        self.objects = _Pool(line.removesuffix("\r") for line in _read_text(folder / OBJECTS).split("\n"))
        if not len(self.objects):
            raise UserError(f"{folder / OBJECTS} is empty: write an object's name on each line")
        types = _read_types(folder / ANSWERS)
        self.answers = {kind: _Pool(answers) for kind, answers in types.items()}
        if len(self.answers[OTHER]) < 2:
            raise UserError(
                f"{folder / ANSWERS}: type {OTHER!r} needs two different answers, of which one is always wrong"
            )
        self._check_captions()
        self._types = {_key(answer): kind for kind, answers in types.items() if kind != OTHER for answer in answers}

    def caption(self, caption: str, objects: list[str], draw: np.random.Generator, max_words: int | None = None) -> str:
        """A caption that does not describe the picture of `caption`: tidy, so that its form gives nothing away.

        With a chance of 0.4 it is the same with one of the picture's objects exchanged for one that the picture does
        not have, wherever the object stands as a whole word; else, or where no object stands in the caption, it is any
        other line of the file.

        Args:
            caption: as written, or tidy.
            objects: names of what is in the picture.
            draw: where every random choice comes from.
            max_words: the caption is cut to so many words, and differs within them.
        """
        if objects and draw.random() < SWAPPED and (swapped := self._swap(caption, objects, draw, max_words)):
            return swapped
        key = _key(caption, max_words)
        count = len(self.captions)
        for _ in range(_TRIES):
            found = self.captions.text(int(draw.integers(count)))
            if _differs(found, key, max_words):
                return tidy_caption(found, max_words)
        start = int(draw.integers(count))  # nearly all lines are this caption
        for step in range(count):
            found = self.captions.text((start + step) % count)
            if _differs(found, key, max_words):
                return tidy_caption(found, max_words)
        raise UserError(f"{self.captions.path}: all captions have the same first {max_words} words: add other ones")

    def answer(self, answer: str, confidence: float, draw: np.random.Generator) -> str:
        """An answer other than `answer`.

        With a chance of `confidence` - 0.1 it is one of the same type, otherwise one of type `other`. Of the first, all
        beyond a chance of one half (0.4 where the confidence is 1) are off by one where the answer is a count.

        Args:
            answer: the right one.
            confidence: of it, 0 to 1.
            draw: where every random choice comes from.
        """
        key, chance = _key(answer), draw.random()
        kind = self._types.get(key)
        if kind is not None and confidence > chance + 0.1:
            if kind == COUNT and chance > 0.5 and _COUNTED.fullmatch(answer.strip()):
                number = int(answer)
                return str(number + (1 if number == 0 or draw.random() < 0.5 else -1))
            if (found := self.answers[kind].other({key}, draw)) is not None:
                return found
        return self.answers[OTHER].other({key}, draw)

    # ------------------------------------------------------------------------------------------------------- helpers

    def _swap(self, caption: str, objects: list[str], draw: np.random.Generator, max_words: int | None) -> str | None:
        """The caption with one object exchanged; None where that is not possible."""
        caption = tidy_caption(caption, max_words)
        names = dict.fromkeys(_key(name) for name in objects)
        there = [name for name in names if name and _whole(name).search(caption)]
        if not there:
            return None
        name = there[int(draw.integers(len(there)))]
        other = self.objects.other(names, draw)
        if other is None:
            return None
        swapped = _whole(name).sub(lambda _: _key(other), caption)
        return tidy_caption(swapped, max_words) if _differs(swapped, _key(caption, max_words), max_words) else None

    def _check_captions(self) -> None:
        first = None
        for index in range(len(self.captions)):
            text = self.captions.text(index)
            if first is None:
                first = _key(text) or None
            elif _differs(text, first):
                return
        found = "one caption only" if first is not None else "no caption"
        raise UserError(f"{self.captions.path} holds {found}: image-text matching needs two different ones, one a line")


class _Pool:
    """Different texts, of which one is drawn that is none of some others.

    They are told apart by their keys and given as written. Blank ones count for nothing.
    """

    def __init__(self, texts: Iterable[str]):
        written: dict[str, str] = {}
        for text in texts:
            if key := _key(text):
                written.setdefault(key, text)
        self.texts = list(written.values())
        self._places = {key: place for place, key in enumerate(written)}

    def __len__(self) -> int:
        return len(self.texts)

    def other(self, excluded: Iterable[str], draw: np.random.Generator) -> str | None:
        """One of the texts but for those of the `excluded` keys; None where none is left."""
        taken = sorted(self._places[key] for key in set(excluded) if key in self._places)
        if len(taken) == len(self.texts):
            return None
        place = int(draw.integers(len(self.texts) - len(taken)))
        for gap in taken:  # step over them, in order; nothing is copied
            place += place >= gap
        return self.texts[place]


def _key(text: str, max_words: int | None = None) -> str:
    """What texts share that are one caption, whether tidied or not; empty where nothing is left of it.

    Tidying a tidy text may still find punctuation in front, which a space protected before.
    """
    while (tidy := tidy_caption(text, max_words)) != text:
        text = tidy
    return text.strip()


def _differs(text: str, key: str, max_words: int | None = None) -> bool:
    """Whether a text is another caption than that of the key, and one at all."""
    return _key(text, max_words) not in ("", key)


def _whole(name: str) -> re.Pattern[str]:
    """Finds a tidy name where it stands as whole words."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8: save the file as UTF-8") from error


def _read_types(path: Path) -> dict[str, list[str]]:
    """The answers of each type."""
    text = _read_text(path)
    wanted = f"write {{type: [answers]}} with a type {OTHER!r}"
    try:
        types = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        reason = getattr(error, "msg", error)
        raise UserError(f"{path}:{line}: not JSON ({reason}): {wanted}") from error
    if not isinstance(types, dict):
        raise UserError(f"{path}:1: {_kind(types)} instead of an object: {wanted}")
    for kind, answers in types.items():
        fault = None
        if not isinstance(answers, list):
            fault = f"{_kind(answers)} instead of a list"
        elif wrong := [answer for answer in answers if not isinstance(answer, str)]:
            fault = f"{json.dumps(wrong[0])[:60]} among its answers is no text; write it in quotation marks"
        if fault:
            raise UserError(f"{path}:{_line_of(kind, text)}: type {kind!r}: {fault}: {wanted}")
    if OTHER not in types:
        raise UserError(f"{path}: no type {OTHER!r}, which serves answers of no type: {wanted}")
    return types


def _line_of(key: str, text: str) -> int:
    """The line on which a key of JSON first stands, counted from 1."""
    place = max(text.find(json.dumps(key, ensure_ascii=False)), text.find(json.dumps(key)), 0)
    return text.count("\n", 0, place) + 1


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
