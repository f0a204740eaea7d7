"""Makes a vocabulary from the user's own text: `spm.model` and `dict.txt`, a `--bpe-dir` for `--bpe sentencepiece`."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from ..errors import UserError
from ..whole_file import replacing
from .text import SEPARATOR
from .tsv import TSVStore

logger = logging.getLogger(__name__)

_CONFIDENCE = re.compile(r"\s*[0-9.]+\|!\+")  # of an answer: `0.6|!+yes`
_BOX = re.compile(r"\s*[0-9.]+(,[0-9.]+){3}\s*")  # in the column that has answers in other rows of pretraining


def train_bpe(
    out: str | os.PathLike[str],
    files: Sequence[tuple[str | os.PathLike[str], Sequence[int]]],
    vocab_size: int = 8000,
    instructions: Sequence[str] = (),
) -> dict[str, Any]:
    """Learns byte-pair encoding from columns of TSV files.

    References joined by `&&` are texts of their own, an answer loses its `confidence|!+`, and a box `x0,y0,x1,y1` is
    no text. Each text is learned as written and in lower case, since tasks lower some texts and not others. Spaces
    stay as they are (no normalisation, no dummy prefix), and a character outside the vocabulary is spelled in bytes,
    so decoding gives back what was encoded. The same text gives the same files to the byte: merges are counted,
    nothing is drawn, one thread.

    Args:
        out: folder for the two files, made if missing.
        files: TSV files, each with its columns of text, counted from 0.
        instructions: texts that every example will begin with, learned as if each stood before its share of them.
        vocab_size: pieces wanted, 257 of them bytes and the unknown piece. A text too small for it gives fewer.

    Returns:
        `pieces` (number), `vocab_size` (as asked), `texts` (number), `reduced` (one line to print, or ""), `folder`.

    Raises:
        UserError: no text, `vocab_size` too small for the characters, or `out` holds another kind of vocabulary.
    """
    folder = Path(out)
    if any((folder / name).exists() for name in ("encoder.json", "vocab.bpe", "vocab.txt")):
        raise UserError(f"{folder} holds another kind of vocabulary, which would lose its dict.txt: name a new folder")
    texts = [text for file, columns in files for text in _texts(file, columns)]
    if not texts:
        named = ", ".join(f"{file}, columns {','.join(map(str, columns))}" for file, columns in files)
        raise UserError(f"{named}: no text: check --columns, counted from 0")
    repeated = [text for text in instructions for _ in range(1 + len(texts) // len(instructions))]
    model = _learn([*texts, *repeated], vocab_size)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size()) if not processor.is_unknown(i)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "spm.model") as file:
            file.write(model)
        with replacing(folder / "dict.txt", text=True) as file:
            file.write("".join(f"{piece} 1\n" for piece in pieces))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}): name another folder") from error
    reduced = ""
    if processor.get_piece_size() < vocab_size:
        reduced = f"the text is too small for {vocab_size} pieces: the vocabulary has {processor.get_piece_size()}"
        logger.info(reduced)
    return {
        "pieces": processor.get_piece_size(),
        "vocab_size": vocab_size,
        "texts": len(texts),
        "reduced": reduced,
        "folder": str(folder),
    }


def _texts(file: str | os.PathLike[str], columns: Sequence[int]) -> Iterator[str]:
    """The texts of a file, white space made single spaces, each with the leading space that OFA gives its texts."""
    for row in TSVStore(file, [f"column_{column}" for column in columns], columns, flag="--columns"):
        for cell in row:
            for text in cell.split(SEPARATOR):
                if _BOX.fullmatch(text):
                    continue
                words = _CONFIDENCE.sub("", text, count=1) if _CONFIDENCE.match(text) else text
                if written := " ".join(words.split()):
                    yield f" {written}"
                    if written.lower() != written:
                        yield f" {written.lower()}"


def _learn(texts: list[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if needed := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", str(error)):
            least = needed[1]
            raise UserError(f"--vocab-size {vocab_size}: bytes and characters alone need {least}: raise it") from error
        raise UserError(f"--vocab-size {vocab_size}: sentencepiece refuses it ({error}): try another") from error
    return model.getvalue()
