"""Kinds of example: what a task that mixes several must know of each to generate for it and to judge the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..data.codec import Codec
from ..models.generation.grammar import Grammar
from ..models.generation.trie import Trie
from .metrics.base import Metric


class Kind:
    """One kind of example, as it stands one whose answers are text.

    Attributes:
        name: its name in the log, and what `--kinds` calls it.
        metrics: what its answers are judged by, the main one first.
        settings: of generation, where they differ from stock's.
        answers: its closed answer set; empty: answers are free.
        writes_codes: whether its answers are image codes.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[type[Metric], ...]]
    settings: ClassVar[Mapping[str, Any]] = {}
    answers: ClassVar[tuple[str, ...]] = ()
    writes_codes: ClassVar[bool] = False

    def generation(self, cfg: Any) -> dict[str, Any]:
        """Its settings under a task's configuration."""
        return dict(self.settings)

    def rules(self, codec: Codec) -> Grammar | None:
        """What an answer may be; None: anything."""
        if not self.answers:
            return None
        return Trie.from_answers([codec.encode(f" {answer}").tolist() for answer in self.answers], codec.bos, codec.eos)

    def answer(self, codec: Codec, cfg: Any, hypothesis: Mapping[str, Any], scale: tuple[float, float]) -> Any:
        """What a hypothesis says.

        Args:
            codec: ids to text.
            cfg: the task's configuration.
            hypothesis: stock's: `tokens` int64[T], `positional_scores` float[T].
            scale: pixels of the model's picture for each pixel of the stored one, along x and y.
        """
        return codec.decode(hypothesis["tokens"]).strip()

    def entry(self, uniq_id: str | int, answer: Any) -> dict[str, Any]:
        """One entry of the result file."""
        return {"uniq_id": uniq_id, "answer": answer}
