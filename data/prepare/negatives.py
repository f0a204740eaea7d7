"""What negatives are drawn from: captions, names of objects, and answers by type (`negative_sample/`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

OTHER = "other"
HOW_MANY = "how many"
YES_NO = "yes/no"
COLOUR = "color"
FILES = ("all_captions.txt", "object.txt", "type2ans.json")

_COLOUR = re.compile(r"(what|which) colou?rs?\b")


def question_type(question: str, answer: str, question_type: str | None = None, answer_type: str | None = None) -> str:
    """The type of an answer.

    `how many` and `yes/no` are what they say. Otherwise it is the `question_type` of VQAv2's annotations, of which
    there are 65 ("what is the"); without one, `color` for questions that begin so, else `other`.

    Args:
        question: its text.
        answer: the best answer.
        question_type, answer_type: as in VQAv2's annotations, if there are any.
    """
    asked = question_type.lower() if isinstance(question_type, str) and question_type else None
    words = question.lower() if asked is None else asked
    if words.startswith(HOW_MANY):
        return HOW_MANY
    if answer_type == YES_NO or (answer_type is None and answer.lower() in ("yes", "no")):
        return YES_NO
    if asked is not None:
        return asked
    return COLOUR if _COLOUR.match(words) else OTHER


class Negatives:
    """Gathers object names and the best answers of questions. Captions are in the spool: there may be millions."""

    def __init__(self) -> None:
        self.objects: dict[str, None] = {}  # in the order first seen, as all below
        self.answers: dict[str, dict[str, int]] = {}  # answer -> type -> how often

    def add_object(self, name: str) -> None:
        """A name, in lower case."""
        self.objects.setdefault(name.lower())

    def add_answer(self, answer: str, kind: str) -> None:
        """The best answer of one question."""
        kinds = self.answers.setdefault(answer, {})
        kinds[kind] = kinds.get(kind, 0) + 1

    def by_type(self) -> dict[str, list[str]]:
        """Type -> answers, each answer in the one type that it has most often.

        A type needs two answers, or nothing else could be drawn; others go to `other`. If that keeps fewer than two it
        holds every answer: who looks an answer's type up leaves `other` out.
        """
        types: dict[str, list[str]] = {}
        for answer, kinds in self.answers.items():
            types.setdefault(max(kinds, key=lambda kind: kinds[kind]), []).append(answer)
        kept = {kind: answers for kind, answers in types.items() if len(answers) > 1 and kind != OTHER}
        typed = {answer for answers in kept.values() for answer in answers}
        others = [answer for answer in self.answers if answer not in typed]
        return {**kept, OTHER: others if len(others) > 1 else list(self.answers)}

    def object_lines(self) -> Iterator[str]:
        """The lines of `object.txt`."""
        return (f"{name}\n" for name in self.objects)

    def answers_json(self) -> str:
        """The text of `type2ans.json`."""
        return json.dumps(self.by_type(), ensure_ascii=False, indent=1) + "\n"
