"""Document frequencies for CIDEr-D in a file: counted on one's own captions, or taken from the official cache."""

from __future__ import annotations

import io
import json
import math
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from ...whole_file import replacing
from .cider import MAX_ORDER, Ngram, document_frequencies

FORMAT = "ofa-cider-df"
VERSION = 1
PLAIN = {  # what a pickle may name; texts and numbers need no name
    **{("builtins", kind.__name__): kind for kind in (dict, float, int, str, tuple, list)},
    ("collections", "defaultdict"): defaultdict,
}


class Frequencies(NamedTuple):
    """What CIDEr-D knows of a language.

    Attributes:
        counts: for each n-gram, n = 1..4, the number of images in whose captions it occurs. The end of a caption is
            counted as a word, so that the reward finds its n-grams; validation, which asks for none, is as without.
        images: number of images.
    """

    counts: Mapping[Ngram, float]
    images: float


def count_frequencies(captions: Iterable[Sequence[str]]) -> Frequencies:
    """Those of one list of captions for each image."""
    return Frequencies(*document_frequencies(captions, end=True))


def write_frequencies(path: Path, frequencies: Frequencies, origin: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all; `origin` says for its reader where the numbers come from."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "origin": origin,
        "images": frequencies.images,
        "frequencies": {" ".join(ngram): count for ngram, count in sorted(frequencies.counts.items())},
    }
    with replacing(path, text=True) as file:
        file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_frequencies(path: str, flag: str) -> Frequencies:
    """The frequencies of a file of `ofa cider-df`; `flag` named it.

    Raises:
        UserError: no such file, or it is another one.
    """
    source = f"{flag} {path}"
    if not Path(path).is_file():
        raise UserError(f"{source}: no such file; `ofa cider-df FILE train.tsv` counts one from your own captions")
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(
            f"{source}: not JSON ({error}); if it is the official pickle, convert it: "
            f"`ofa cider-df df.json --from-official {path}`"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{source}: no document frequencies; `ofa cider-df FILE train.tsv` counts them")
    if content.get("version") != VERSION:
        raise UserError(f"{source}: of version {content.get('version')}, and this program reads {VERSION}: count anew")
    table = content.get("frequencies")
    if not isinstance(table, dict):
        raise UserError(f"{source}: damaged (no table of frequencies); count anew with `ofa cider-df`")
    return _checked({tuple(ngram.split(" ")): count for ngram, count in table.items()}, content.get("images"), source)


def read_official(path: str) -> Frequencies:
    """The official cache (`coco-train-words.p`: a pickle of `document_frequency` and `ref_len`), read as data.

    Raises:
        UserError: no such file, it names anything else than plain containers, texts and numbers, or holds another
            table.
    """
    source = f"--from-official {path}"
    if not Path(path).is_file():
        raise UserError(f"{source}: no such file")
    try:
        content = _PlainUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # a damaged pickle fails in any way
        raise UserError(f"{source}: not readable as a pickle ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("document_frequency"), dict):
        raise UserError(f"{source}: expected a dict of document_frequency and ref_len, as coco-train-words.p is")
    return _checked(content["document_frequency"], content.get("ref_len"), source)


class _PlainUnpickler(pickle.Unpickler):
    """Makes containers, texts and numbers; whatever else a pickle names is refused before it exists."""

    def find_class(self, module: str, name: str) -> Any:
        found = PLAIN.get(("builtins" if module == "__builtin__" else module, name))  # as Python 2 called it
        if found is None:
            raise UserError(f"it names {module}.{name}, which a table of numbers has no use for; not read")
        return found


def _checked(counts: Mapping[Any, Any], images: Any, source: str) -> Frequencies:
    """The table, after a look at every entry of it."""
    if not _is_count(images) or images < 1:
        raise UserError(f"{source}: the number of images is {images!r}; expected 1 or more")
    for ngram, count in counts.items():
        words = isinstance(ngram, tuple) and 0 < len(ngram) <= MAX_ORDER and all(isinstance(w, str) for w in ngram)
        if not words:
            raise UserError(f"{source}: {ngram!r} is no n-gram of 1 to {MAX_ORDER} words")
        if not _is_count(count):
            raise UserError(f"{source}: the frequency of {' '.join(ngram)!r} is {count!r}; expected a number")
    if not counts:
        raise UserError(f"{source}: no n-gram in it")
    return Frequencies(Counter(counts), images)  # without a default: looking a word up adds nothing


def _is_count(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
