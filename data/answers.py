"""Closed answer sets: text, JSON or the official pickle, read without running anything."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

from ..errors import UserError

LARGEST = 2**28  # bytes of a pickle; the official ones have less than 2**20


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers; whatever names a class or a function, or calls one, is refused."""

    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and could run anything")

    def persistent_load(self, pid: object) -> None:
        raise pickle.UnpicklingError("it refers to something outside of the file")


# What a broken, or a malicious, pickle makes Python's unpickler raise, and what a text that is no UTF-8 does
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError, MemoryError)
_BROKEN += (OverflowError, RecursionError)


def read_answers(path: str) -> list[str]:
    """The answers of a file, in order.

    Args:
        path: `.json` (a list, or the official dict answer -> number), `.pkl` (the official dict), else text with one
            answer a line.

    Raises:
        UserError: the file is missing, is of another form, holds no answer, an empty one or one twice.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--ans2label-file {path}: no such file; give a text file with one answer a line")
    source = f"--ans2label-file {path}"
    if file.suffix == ".pkl" and file.stat().st_size > LARGEST:
        raise UserError(f"{source}: {file.stat().st_size} bytes, too many for an answer set: is it another file?")
    content = file.read_bytes()
    if file.suffix == ".json":
        return parse_answer_json(content, source)
    try:
        if file.suffix == ".pkl":
            return _checked(_PlainUnpickler(io.BytesIO(content)).load(), source)
        lines = content.decode("utf-8-sig").split("\n")
    except _BROKEN as error:
        raise _unreadable(source, error) from None
    return _checked([line.rstrip("\r") for line in (lines[:-1] if not lines[-1] else lines)], source)


def parse_answer_json(content: str | bytes, source: str) -> list[str]:
    """The answers of a JSON list, or of the official dict answer -> number; `source` names it in errors."""
    try:
        return _checked(json.loads(content), source)
    except ValueError as error:
        raise _unreadable(source, error) from None


def _unreadable(source: str, error: Exception) -> UserError:
    return UserError(f"{source}: not readable as an answer set ({error}); write a text file with one answer a line")


def _checked(answers: object, source: str) -> list[str]:
    if not isinstance(answers, (dict, list)) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{source}: expected a list of texts, or a dict with answers as keys")
    answers = list(answers)  # of the official dict only the order of the keys counts
    if not answers:
        raise UserError(f"{source}: no answers in it")
    seen: set[str] = set()
    for number, answer in enumerate(answers, 1):
        if not answer.strip() or answer in seen:
            fault = "is there twice" if answer.strip() else "is empty"
            raise UserError(f"{source}: answer {number} ({answer!r}) {fault}: remove it")
        seen.add(answer)
    return answers
