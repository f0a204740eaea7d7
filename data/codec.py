"""Codec: the one place that knows the vocabulary. Text, box bins and image codes to token ids, and back.

Three kinds of text vocabulary, each a folder given as `--bpe-dir`:

- "gpt2": `dict.txt`, `encoder.json`, `vocab.bpe`, those of the released English checkpoints (official utils/BPE);
- "bert": `dict.txt`, `vocab.txt`, those of the released Chinese checkpoints (official utils/BERT_CN_dict);
- "sentencepiece": `spm.model`, `dict.txt`, made from the user's text by `ofa train-bpe`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece
import torch
from fairseq.data import Dictionary
from torch import LongTensor, Tensor

from ..errors import UserError
from .wordpiece import CONTINUED, WordPiece

try:
    import tiktoken
except ImportError:
    tiktoken = None

FILES = {
    "gpt2": ("dict.txt", "encoder.json", "vocab.bpe"),
    "sentencepiece": ("spm.model", "dict.txt"),
    "bert": ("dict.txt", "vocab.txt"),
}
_KINDS = {  # name, telling file
    "gpt2": ("GPT-2", "encoder.json"),
    "sentencepiece": ("sentencepiece", "spm.model"),
    "bert": ("WordPiece", "vocab.txt"),
}
_SPACE = "\u2581"  # how sentencepiece writes a space
_FILLER = re.compile(r"madeupword\d+")  # fairseq pads dictionaries with these
# GPT-2's own pattern, as in fairseq.data.encoders.gpt2_bpe_utils
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Codec:
    """Text, bins and codes to the ids of one dictionary and back. Pickles, so that spawned workers may have it.

    The dictionary holds, in this order: `<s> <pad> </s> <unk>`, the symbols of `dict.txt`, `<mask>`, `<code_0>` ...,
    `<bin_0>` ... (official tasks/ofa_task.py). Make one with `build` or `restore`.

    Attributes:
        dictionary: fairseq's, for source and target.
        bos, pad, eos, unk, mask: ids.
        code0, bin0: id of the first code and of the first bin; the others follow.
    """

    def __init__(self, tokenizer: _Tokenizer, record: dict[str, Any], num_bins: int, code_dict_size: int):
        for flag, value in (("--num-bins", num_bins), ("--code-dict-size", code_dict_size)):
            if value < 0:
                raise UserError(f"{flag} {value}: a vocabulary cannot have a negative number of tokens")
        self.tokenizer = tokenizer
        self.num_bins, self.code_dict_size = num_bins, code_dict_size
        self._record = record
        self.dictionary = Dictionary()
        for symbol, count in tokenizer.symbols:
            self.dictionary.add_symbol(symbol, count)
        self.mask = len(self.dictionary)
        self.code0 = self.mask + 1
        self.bin0 = self.code0 + code_dict_size
        extra = ["<mask>", *(f"<code_{i}>" for i in range(code_dict_size)), *(f"<bin_{i}>" for i in range(num_bins))]
        for symbol in extra:
            if symbol in self.dictionary:
                raise UserError(f"{tokenizer.name} holds {symbol}, which OFA adds itself: take it out of dict.txt")
            self.dictionary.add_symbol(symbol)
        self.bos, self.pad = self.dictionary.bos(), self.dictionary.pad()
        self.eos, self.unk = self.dictionary.eos(), self.dictionary.unk()
        self._ids = [self.dictionary.index(symbol) for symbol in tokenizer.token_symbols]  # of the tokenizer's numbers
        self._silent = {self.dictionary[token] for token in (self.bos, self.pad, self.eos)}

    @classmethod
    def build(cls, bpe: str | None, bpe_dir: str | None, num_bins: int = 1000, code_dict_size: int = 8192) -> Codec:
        """The codec of a vocabulary folder.

        Args:
            bpe: "gpt2" (also None, as official), "sentencepiece" or "bert".
            bpe_dir: the folder.
            num_bins: box tokens along an axis.
            code_dict_size: image tokens; 0 for none.

        Raises:
            UserError: naming --bpe, --bpe-dir, --num-bins or --code-dict-size and what to do.
        """
        bpe = _known(bpe)
        folder = _folder(bpe, bpe_dir)
        contents = _read(folder, bpe)
        record: dict[str, Any] = {"bpe": bpe}
        if bpe == "sentencepiece":
            record["model"] = base64.b64encode(contents["spm.model"]).decode("ascii")
            record["dict"] = contents["dict.txt"].decode("utf-8", "replace")  # if damaged, parsing refuses it below
        else:
            record |= {"dir": str(folder.resolve()), "sha256": _digests(contents)}
        return cls(_tokenizer(bpe, contents, str(bpe_dir)), record, num_bins, code_dict_size)

    @classmethod
    def restore(cls, state: str, bpe_dir: str | None = None, num_bins: int = 1000, code_dict_size: int = 8192) -> Codec:
        """The codec that `state()` described: what a checkpoint was trained with.

        A sentencepiece vocabulary is in the state whole. Files of the other kinds are looked for in `bpe_dir`, else
        where they were, and must be the same to the byte.

        Raises:
            UserError: the files are gone, or those of `bpe_dir` are not the ones of the checkpoint.
        """
        try:
            record = json.loads(state)
            bpe = _known(record["bpe"])
            if bpe == "sentencepiece":
                model = base64.b64decode(record["model"], validate=True)
                contents = {"spm.model": model, "dict.txt": record["dict"].encode("utf-8")}
                digests, saved_dir = _digests(contents), None
            else:
                digests, saved_dir = {file: record["sha256"][file] for file in FILES[bpe]}, Path(record["dir"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError("the checkpoint's vocabulary record is damaged: give --bpe and --bpe-dir") from error
        name = "the checkpoint"
        if bpe_dir:
            contents = _read(_folder(bpe, bpe_dir, of_checkpoint=True), bpe)
            if _digests(contents) != digests:
                raise UserError(
                    f"--bpe-dir {bpe_dir} is another vocabulary than the checkpoint's, so its ids would mean other "
                    "words: leave the flag out or give the folder that the checkpoint was trained with"
                )
            name = str(bpe_dir)
            if saved_dir is not None:
                record = {**record, "dir": str(Path(bpe_dir).resolve())}
        elif saved_dir is not None:
            there = all((saved_dir / file).is_file() for file in FILES[bpe])
            contents = _read(saved_dir, bpe) if there else {}
            if _digests(contents) != digests:
                raise UserError(
                    f"the checkpoint's vocabulary is {'changed' if there else 'no longer'} in {saved_dir}: "
                    f"give the folder of its {', '.join(FILES[bpe])} as --bpe-dir"
                )
            name = str(saved_dir)
        return cls(_tokenizer(bpe, contents, name), record, num_bins, code_dict_size)

    def state(self) -> str:
        """JSON for the checkpoint: a sentencepiece model whole, other files by folder and SHA-256."""
        return json.dumps(self._record, ensure_ascii=True, sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the dictionary's symbols in order: equal only where every id means the same."""
        return self.fingerprint_of(len(self.dictionary))

    def fingerprint_of(self, size: int) -> str:
        """The same over the first `size` symbols: what a vocabulary that has grown since then had."""
        return hashlib.sha256("\n".join(self.dictionary.symbols[:size]).encode("utf-8")).hexdigest()

    @property
    def chinese(self) -> bool:
        """Whether instructions are given in Chinese. Officially too the kind of vocabulary decides."""
        return isinstance(self.tokenizer, _BERT)

    def encode(self, text: str, max_tokens: int | None = None) -> LongTensor:
        """Text to int64[N], without bos and eos, cut to `max_tokens`.

        Give text its leading space (`" a dog"`): a first word is then the same token as anywhere else. What looks like
        a special token in a text is text.

        Raises:
            UserError: a lone surrogate, which has no UTF-8 form (it comes from broken JSON).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"a text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: remove it"
            ) from error
        ids = self._ids
        return torch.tensor([ids[token] for token in self.tokenizer.encode(text)][:max_tokens], dtype=torch.long)

    def bins(self, bins: Sequence[int]) -> LongTensor:
        """Bin numbers in 0 .. num_bins - 1 to ids, int64[N]. Raises ValueError outside of that."""
        return self._offset("bin", bins, self.num_bins, self.bin0, "--num-bins")

    def codes(self, codes: Sequence[int]) -> LongTensor:
        """Image codes in 0 .. code_dict_size - 1 to ids, int64[N]. Raises ValueError outside of that."""
        return self._offset("code", codes, self.code_dict_size, self.code0, "--code-dict-size")

    def word_starts(self, ids: Tensor) -> Tensor:
        """Which of int64[N] ids begin a word, bool[N]: tokens of text that decode to a space and what follows it.

        Of a "bert" vocabulary every piece that does not continue a word. No special token, bin or code begins one.
        """
        return torch.from_numpy(self._begins_word[ids.numpy()])

    @functools.cached_property
    def _begins_word(self) -> np.ndarray:
        """bool[V], by id."""
        begins = np.zeros(len(self.dictionary), dtype=bool)
        for token in range(self.dictionary.nspecial, self.mask):
            begins[token] = self.tokenizer.begins_word(self.dictionary.symbols[token])
        return begins

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """Ids to text; bos, pad and eos vanish, `<bin_3>`, `<code_7>`, `<mask>` and `<unk>` stand as they are.

        Half a character (byte-level tokens, cut) becomes U+FFFD. A "bert" vocabulary leaves spaces between Chinese
        characters, as officially.
        """
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return self._join([self.dictionary.symbols[token] for token in ids])

    def decode_symbols(self, symbols: str) -> str:
        """Dictionary symbols joined by spaces to text: `"<bin_0> <bin_9> 257 3666"` to `"<bin_0><bin_9> aMy"`.

        Anything that is no symbol (fairseq's escaped `<<unk>>`) stands as it is.
        """
        return self._join(symbols.split(" "))  # at spaces only: a symbol may be another kind of white space

    def _join(self, symbols: Iterable[str]) -> str:
        return self.tokenizer.decode([symbol for symbol in symbols if symbol not in self._silent])

    @staticmethod
    def _offset(what: str, numbers: Sequence[int], size: int, first: int, flag: str) -> LongTensor:
        for number in numbers:
            if not 0 <= number < size:
                raise ValueError(f"{what} {number} is not in 0 .. {size - 1}: see {flag}")
        return torch.tensor([first + int(number) for number in numbers], dtype=torch.long)


# The tokenizers: text to their own numbers, and dictionary symbols, known to them or not, to text ---------------------


class _Tokenizer(Protocol):
    """What a codec needs of a vocabulary folder.

    Attributes:
        name: the folder, for messages.
        symbols: the symbols of dict.txt with their counts, in order.
        token_symbols: the symbol of each of the tokenizer's own numbers.
    """

    name: str
    symbols: list[tuple[str, int]]
    token_symbols: list[str]

    def encode(self, text: str) -> list[int]:
        """Text to the tokenizer's numbers."""

    def decode(self, symbols: Iterable[str]) -> str:
        """Dictionary symbols to text."""

    def begins_word(self, symbol: str) -> bool:
        """Whether a symbol of dict.txt stands for the beginning of a word."""


class _Bytes:
    """Decodes by joining what symbols mean in bytes, which lets other symbols stand between the tokenizer's own."""

    symbol_bytes: dict[str, bytes]

    def decode(self, symbols: Iterable[str]) -> str:
        """Dictionary symbols to text; what is no token of the tokenizer's stands as it is."""
        meaning = self.symbol_bytes
        parts = [meaning[s] if s in meaning else s.encode("utf-8", "replace") for s in symbols]
        return b"".join(parts).decode("utf-8", errors="replace")

    def begins_word(self, symbol: str) -> bool:
        """Whether a symbol is a token whose text begins with a space."""
        return self.symbol_bytes.get(symbol, b"").startswith(b" ")


class _SentencePiece(_Bytes):
    """A sentencepiece model with its dictionary."""

    def __init__(self, model: bytes, dict_txt: bytes, name: str):
        self.name = name
        self.model = _load_model(model, name)
        self.symbols = _parse_dict(dict_txt, name)
        self.token_symbols: list[str] = []  # of the model's numbers
        self.symbol_bytes: dict[str, bytes] = {}
        for number in range(self.model.get_piece_size()):
            piece = self.model.id_to_piece(number)
            if self.model.is_control(number) or self.model.is_unknown(number) or self.model.is_unused(number):
                self.token_symbols.append("<unk>")
                continue
            self.token_symbols.append(piece)
            if self.model.is_byte(number):  # "<0x0A>"
                self.symbol_bytes[piece] = bytes([int(piece[3:5], 16)])
            else:
                self.symbol_bytes[piece] = piece.replace(_SPACE, " ").encode("utf-8")
        listed = {symbol for symbol, _ in self.symbols if not _FILLER.fullmatch(symbol)}
        strange, absent = sorted(listed - self.symbol_bytes.keys()), sorted(self.symbol_bytes.keys() - listed)
        if strange or absent:
            lacks = f"spm.model lacks {strange[0]!r}" if strange else f"dict.txt lacks {absent[0]!r}"
            raise UserError(
                f"{name}: dict.txt and spm.model are not of one vocabulary ({lacks}): make both with `ofa train-bpe`"
            )

    def encode(self, text: str) -> list[int]:
        """Text to the model's piece numbers."""
        return self.model.encode(text)


def _load_model(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    try:
        if not model:
            raise RuntimeError("an empty file, which sentencepiece itself takes")
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{name}/spm.model is no sentencepiece model: make one with `ofa train-bpe`") from error


class _BERT(WordPiece):
    """A WordPiece vocabulary with its dictionary.

    Of two of vocab.txt's pieces, U+2028 and `##` before it, the official dict.txt has what precedes U+2028, an end of
    line to its writer: an empty symbol and `##`. They keep their rows; a text is cut at U+2028, so nothing used them.
    """

    def __init__(self, vocab_txt: bytes, dict_txt: bytes, name: str):
        self.name = name
        try:
            pieces = [line.removesuffix("\r") for line in vocab_txt.decode("utf-8").removesuffix("\n").split("\n")]
            super().__init__(pieces)
        except ValueError as error:
            raise UserError(f"{name}/vocab.txt is no vocabulary of BERT's ({error}): restore the file") from error
        self.symbols = _parse_dict(dict_txt, name)
        self.token_symbols = pieces
        listed = {symbol for symbol, _ in self.symbols}
        missing = [piece for piece in pieces if piece not in listed and piece.split() == [piece]]
        if missing:
            raise UserError(
                f"{name}/dict.txt lacks {len(missing)} of the {len(pieces)} pieces of vocab.txt (the first is "
                f"{missing[0]!r}): give the folder whose files belong together as --bpe-dir"
            )

    def begins_word(self, symbol: str) -> bool:
        """Whether a piece stands at the beginning of a word."""
        return not symbol.startswith(CONTINUED)


class _GPT2(_Bytes):
    """GPT-2's byte-level BPE, by tiktoken where it is installed, else by fairseq's own code; the ids are the same."""

    def __init__(self, encoder_json: bytes, vocab_bpe: bytes, dict_txt: bytes, name: str):
        self.name = name
        try:
            self._encoder = {str(token): int(number) for token, number in json.loads(encoder_json).items()}
            lines = vocab_bpe.decode("utf-8").split("\n")
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{name}: encoder.json or vocab.bpe is damaged ({error}): restore GPT-2's files") from error
        self._merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        self._of_bytes = {character: byte for byte, character in _byte_characters().items()}
        self._tokens = [*self._of_bytes, *("".join(pair) for pair in self._merges)]  # in order of their rank
        self._check(name)
        self.symbols = _parse_dict(dict_txt, name)
        numbers = {str(number): token for token, number in self._encoder.items()}
        self.token_symbols = [str(number) for number in range(max(self._encoder.values()) + 1)]
        self.symbol_bytes = {number: self._token_bytes(token) for number, token in numbers.items()}
        for line, (symbol, _) in enumerate(self.symbols, 1):
            if symbol not in numbers and not _FILLER.fullmatch(symbol):
                raise UserError(
                    f"{name}/dict.txt:{line}: {symbol!r} is no token number of encoder.json: "
                    "give the folder whose dict.txt, encoder.json and vocab.bpe belong together as --bpe-dir"
                )
        listed = {symbol for symbol, _ in self.symbols}
        if missing := [str(self._encoder[token]) for token in self._tokens if str(self._encoder[token]) not in listed]:
            raise UserError(
                f"{name}/dict.txt lacks {len(missing)} of the {len(self._tokens)} tokens of vocab.bpe (the first is "
                f"{missing[0]}): give the folder whose files belong together as --bpe-dir"
            )
        self._make_encoder()

    def encode(self, text: str) -> list[int]:
        """Text to the numbers of encoder.json."""
        if self._tiktoken is None:
            return self._stock.encode(text)
        return [self._number_of_rank[rank] for rank in self._tiktoken.encode_ordinary(text)]

    def _check(self, name: str) -> None:
        if wrong := next((token for token in self._tokens if token not in self._encoder), None):
            raise UserError(
                f"{name}: vocab.bpe makes {wrong!r}, which encoder.json lacks: "
                "give the folder whose files belong together as --bpe-dir"
            )
        if wrong := next((pair for pair in self._merges if len(pair) != 2), None):
            raise UserError(f"{name}/vocab.bpe: {' '.join(wrong)!r} is not a pair: give GPT-2's folder as --bpe-dir")

    def _token_bytes(self, token: str) -> bytes:
        return bytes(self._of_bytes[c] for c in token) if all(c in self._of_bytes for c in token) else token.encode()

    def _make_encoder(self) -> None:
        self._tiktoken = self._stock = None
        if tiktoken is not None:
            ranks = {self._token_bytes(token): rank for rank, token in enumerate(self._tokens)}
            self._number_of_rank = [self._encoder[token] for token in self._tokens]
            if len(ranks) == len(self._tokens):
                self._tiktoken = tiktoken.Encoding("ofa", pat_str=_GPT2_WORDS, mergeable_ranks=ranks, special_tokens={})
                return
        from fairseq.data.encoders.gpt2_bpe_utils import Encoder

        self._stock = Encoder(self._encoder, self._merges)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_tiktoken", "_stock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_encoder()


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, in the order of its first 256 tokens."""
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

    return bytes_to_unicode()


def _tokenizer(bpe: str, contents: dict[str, bytes], name: str) -> _Tokenizer:
    if bpe == "sentencepiece":
        return _SentencePiece(contents["spm.model"], contents["dict.txt"], name)
    if bpe == "bert":
        return _BERT(contents["vocab.txt"], contents["dict.txt"], name)
    return _GPT2(contents["encoder.json"], contents["vocab.bpe"], contents["dict.txt"], name)


def _parse_dict(data: bytes, name: str) -> list[tuple[str, int]]:
    """The `symbol count` lines of a dict.txt. Lines end at a newline byte only: a symbol may be U+2028."""
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}/dict.txt is not UTF-8 ({error}): restore the file") from error
    if lines == [""]:
        raise UserError(f"{name}/dict.txt is empty: restore the file or give another --bpe-dir")
    symbols: dict[str, int] = {}
    special = set(Dictionary().symbols)
    for number, line in enumerate(lines, 1):
        symbol, space, count = line.rpartition(" ")
        try:
            count = int(count)
        except ValueError:
            count = -1
        if not space or count < 0:  # the symbol may be empty: see _BERT
            raise UserError(f"{name}/dict.txt:{number}: {line[:60]!r} is not 'symbol count': restore the file")
        if symbol in symbols or symbol in special:
            raise UserError(f"{name}/dict.txt:{number}: {symbol!r} is in the dictionary already: restore the file")
        symbols[symbol] = count
    return list(symbols.items())


# Folders --------------------------------------------------------------------------------------------------------------


def _known(bpe: str | None) -> str:
    if bpe is not None and bpe not in FILES:
        raise UserError(f"--bpe {bpe}: choose {_listed(FILES, 'or')}")
    return bpe or "gpt2"


def _listed(names: Iterable[str], last: str) -> str:
    """`a, b and c`."""
    *most, final = names
    return f"{', '.join(most)} {last} {final}"


def _folder(bpe: str, bpe_dir: str | None, of_checkpoint: bool = False) -> Path:
    """The folder if it holds a vocabulary of that kind, else an error that says what it holds."""
    if not bpe_dir:
        raise UserError(
            f"--bpe-dir is missing: give the folder of {_listed(FILES[bpe], 'and')}, "
            "or make one with `ofa train-bpe` and add --bpe sentencepiece"
        )
    folder = Path(bpe_dir)
    if not folder.is_dir():
        raise UserError(f"--bpe-dir {bpe_dir}: no such folder; check the path, or make it with `ofa train-bpe`")
    missing = [name for name in FILES[bpe] if not (folder / name).is_file()]
    if not missing:
        return folder
    wanted, _ = _KINDS[bpe]
    for other, (found, file) in _KINDS.items():
        if (folder / file).is_file() and other != bpe:
            remedy = f"give the checkpoint's own, a {wanted} one" if of_checkpoint else f"add --bpe {other}"
            raise UserError(f"--bpe-dir {bpe_dir} holds a {found} vocabulary ({file}): {remedy}")
    raise UserError(f"--bpe-dir {bpe_dir} lacks {', '.join(missing)}, which --bpe {bpe} reads: check the folder")


def _read(folder: Path, bpe: str) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in FILES[bpe]}
    except OSError as error:
        raise UserError(f"--bpe-dir {folder}: {error.filename} cannot be read ({error.strerror})") from error


def _digests(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
