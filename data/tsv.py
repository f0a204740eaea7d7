"""TSVStore: any row of a TSV file by number, safe in forked and spawned workers.

A row is a line that ends with a newline byte and nothing else (no U+2028, no lone carriage return), its columns are
separated by tab bytes, and quotation marks are text. So a file has the rows that `wc -l` counts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import stat
import time
from array import array
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import BadRow, UserError
from ..machine import cache_folder
from ..whole_file import replacing

try:
    import fcntl
except ImportError:  # not a POSIX system: processes then index the file side by side, which is slower and as right
    fcntl = None

logger = logging.getLogger(__name__)

INDEX_FROM_BYTES = 1 << 20  # a smaller file is scanned at every start, in about a millisecond, and leaves no index
_FORMAT = 1  # of the index file; a file of another format is built again
_HEADER = 8  # int64 numbers before the offsets: format, size, mtime_ns, four of the digest, rows
_END = 1 << 16  # bytes of each end of the file that go into the digest
_CHUNK = 1 << 22
_LONG_ROW = 2048  # mean bytes from which searching newline by newline beats comparing every byte
_BOM = b"\xef\xbb\xbf"

_HEADER_CELL = re.compile(r"[A-Za-z][A-Za-z0-9 _-]{0,30}")
_HEADER_NAMES = {
    "answer", "answers", "bbox", "box", "boxes", "caption", "captions", "class", "code", "codes", "conf", "dataset",
    "file", "filename", "hypothesis", "id", "image", "imageid", "imagepath", "images", "img", "imgid", "index", "label",
    "labels", "name", "objects", "path", "premise", "question", "questionid", "questions", "refs", "sentence", "source",
    "summary", "target", "text", "type", "uniqid", "uniqueid", "url",
}  # fmt: skip


def parse_selected_cols(text: str, flag: str = "--selected-cols") -> list[int | None]:
    """`"0,4,-,2"` to `[0, 4, None, 2]`: which column of the file is each column of the task, from 0; - where none is.

    Raises:
        UserError: not a comma list of column numbers.
    """
    try:
        numbers = [None if part == "-" else int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if any(number is not None and number < 0 for number in numbers):
        raise UserError(f"{flag} {text!r} is not a list of column numbers: write them as 0,4,2, counted from 0")
    return numbers


class TSVStore(Sequence):
    """The rows of one TSV file.

    The byte offset of every row comes from an index, made once and kept as `<file>.ofa-index.npy` beside the file, or
    in `$OFA_CACHE` (else `$XDG_CACHE_HOME/ofa`, `~/.cache/ofa`) where that folder is read-only. It is made anew when
    the file's size, time or either end has changed. Files below `INDEX_FROM_BYTES` have their index in memory only.

    Args:
        path: the file, as the user named it; messages name it so.
        columns: the names of a row's fields.
        selected_cols: for each field the number of its column in the file, counted from 0; by default the first ones.
            None where the file lacks a field, shorter than `columns` where it lacks the last ones.
        required: how many of the fields must be there; those beyond it are None where `selected_cols` (or, by default,
            the first row) ends before them. By default all.
        flag: the option that `selected_cols` came from, for messages.

    Raises:
        UserError: no such file, an empty one, or `selected_cols` does not fit `columns`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[str],
        selected_cols: Sequence[int | None] | None = None,
        required: int | None = None,
        flag: str = "--selected-cols",
    ):
        self.path = os.fspath(path)
        self.columns = tuple(columns)
        self._flag = flag
        self._absolute = os.path.abspath(self.path)  # a spawned worker may stand in another folder
        self._fd, self._pid = _open(self.path, self._absolute), os.getpid()
        self._index = _find_index(self.path, self._absolute, self._fd)
        self._offsets = self._index.offsets
        cells = self._cells(0)
        self._width = len(cells)
        self._header = _looks_like_header(cells)
        self._selected = self._check_columns(selected_cols, len(self.columns) if required is None else required)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Any:
        """Row `index` as a namedtuple of strings with the store's columns as fields.

        Raises:
            BadRow: another number of columns than the first row, a selected column missing, bytes that are no UTF-8, a
                blank line, or, at row 0, a header.
            IndexError: no such row.
            UserError: the file has changed since the store was opened.
        """
        cells = self._cells(index)
        self._check_row(index, cells)
        values: list[str | None] = [None] * len(self.columns)
        for field, column in enumerate(self._selected):
            if column is not None:
                values[field] = self._decoded(index, self.columns[field], cells[column])
        return _row_type(self.columns)(*values)

    def text(self, index: int) -> str:
        """Row `index` as it stands, without its line end: for a file of plain lines, where a tab is text.

        Raises:
            BadRow: bytes that are no UTF-8.
            IndexError: no such row.
            UserError: the file has changed since the store was opened.
        """
        return self._decoded(index, "row", self._row(index))

    @property
    def row_bytes(self) -> np.ndarray:
        """int64[N]: the length of each row in bytes, without its line end."""
        return np.diff(self._offsets) - 1

    def line(self, index: int) -> int:
        """The line number of row `index`, counted from 1, as an editor shows it."""
        return int(index) + 1

    def _check_columns(self, selected: Sequence[int | None] | None, required: int) -> tuple[int | None, ...]:
        names = ", ".join(self.columns)
        if selected is None:
            return tuple(range(max(required, min(self._width, len(self.columns)))))
        given = ",".join("-" if column is None else str(column) for column in selected)
        if len(selected) > len(self.columns):
            raise UserError(f"{self._flag} {given} names {len(selected)} columns, at most {len(self.columns)}: {names}")
        named = required - selected[:required].count(None) if len(selected) >= required else len(selected)
        if named < required:
            names = ", ".join(self.columns[:required])
            raise UserError(f"{self._flag} {given} names {named} columns, not the {required} needed: {names}")
        if any(column is not None and column < 0 for column in selected):
            raise UserError(f"{self._flag} {given}: columns are counted from 0")
        return tuple(selected)

    def _check_row(self, index: int, cells: list[bytes]) -> None:
        line = self.line(index)
        if cells == [b""]:
            raise BadRow(self.path, line, "row", "blank line", "delete it")
        if index == 0 and self._header:
            names = b", ".join(cells[:3]).decode()
            raise BadRow(self.path, line, "row", f"looks like a header ({names}, ...)", "remove the line")
        for field, column in enumerate(self._selected):
            if column is not None and column >= len(cells):
                reason = f"{_count(len(cells))}, but column {column} was selected"
                remedy = f"columns are separated by tabs and counted from 0; check {self._flag}"
                raise BadRow(self.path, line, self.columns[field], reason, remedy)
        if len(cells) != self._width:
            likely = "a tab inside a text?" if len(cells) > self._width else "a column left out, or a text cut short?"
            reason = f"{_count(len(cells))}, the file's first row has {self._width}"
            raise BadRow(self.path, line, "row", reason, likely)

    def _decoded(self, index: int, column: str, cell: bytes) -> str:
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"byte 0x{error.object[error.start]:02x} after {error.start} bytes is not UTF-8"
            raise BadRow(self.path, self.line(index), column, reason, "save the file as UTF-8") from error

    def _cells(self, index: int) -> list[bytes]:
        """The columns of row `index`."""
        return self._row(index).split(b"\t")

    def _row(self, index: int) -> bytes:
        """The bytes of row `index`; checks that a row is still where the index says."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {index}")
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        before = int(index > 0)  # the newline of the row before, and at the end our own
        raw = _pread(self._descriptor(), stop - start + before, start - before)
        if stop > self._index.size:
            raw += b"\n"  # the last line has none
        whole = len(raw) == stop - start + before and raw[:before] in (b"", b"\n")
        if not whole or raw.find(b"\n", before) != len(raw) - 1:
            raise UserError(f"{self.path} has changed since it was opened: leave it alone during a run; start again")
        row = raw[before:-1]
        return row.removesuffix(b"\r")

    def _descriptor(self) -> int:
        """This process's own descriptor; a forked worker opens the file anew."""
        if self._pid != os.getpid():
            if self._fd is not None:
                os.close(self._fd)  # the child's copy; the parent's stays open
            self._fd, self._pid = _open(self.path, self._absolute), os.getpid()
            if os.fstat(self._fd).st_size != self._index.size:
                raise UserError(f"{self.path} has changed since it was opened: start again")
        return self._fd

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_offsets"]
        state["_fd"], state["_pid"] = None, None
        if self._index.file is not None:
            state["_index"] = self._index._replace(offsets=None)  # mapped again, not copied, at the other side
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._index.offsets is None:
            self._index = _find_index(self.path, self._absolute, self._descriptor())
        self._offsets = self._index.offsets

    def __del__(self, close: Callable = os.close, getpid: Callable = os.getpid) -> None:  # at exit `os` may be gone
        if getattr(self, "_fd", None) is not None and self._pid == getpid():
            close(self._fd)


class _Index(NamedTuple):
    """Where the rows of a file begin."""

    offsets: np.ndarray | None  # int64[N + 1]; the last is one past the newline that ends the last row, real or not
    size: int  # of the TSV, bytes
    file: str | None  # None: in memory only


def _open(path: str, absolute: str) -> int:
    try:
        fd = os.open(absolute, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: check the data path and the name of the subset") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}): check the path and its permissions") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise UserError(f"{path} is not a regular file: rows are read by position, so give a file on disk")
    return fd


def _pread(fd: int, length: int, offset: int) -> bytes:
    """All `length` bytes where the file has them: one call of pread may return fewer."""
    parts = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _count(columns: int) -> str:
    return f"{columns} column{'s' if columns != 1 else ''}"


@functools.cache
def _row_type(columns: tuple[str, ...]) -> type:
    """The namedtuple of these columns. Its rows pickle although no module holds it by name."""
    row = namedtuple("Row", columns)
    row.__reduce__ = lambda self: (_make_row, (columns, tuple(self)))
    return row


def _make_row(columns: tuple[str, ...], values: tuple[str | None, ...]) -> Any:
    return _row_type(columns)(*values)


def _looks_like_header(cells: list[bytes]) -> bool:
    """Whether every cell is a short name and most are names that columns commonly have."""
    texts = [cell.decode("utf-8", "replace").strip() for cell in cells]
    if len(texts) < 2 or not all(_HEADER_CELL.fullmatch(text) for text in texts if text):
        return False
    known = sum(re.sub("[ _-]", "", text).lower() in _HEADER_NAMES for text in texts)
    return known >= 2 and 2 * known >= len(texts)


# The index ------------------------------------------------------------------------------------------------------------


def _find_index(path: str, absolute: str, fd: int) -> _Index:
    """The stored index if it is this file's, else a new one, stored for the next process where that is possible."""
    status = os.fstat(fd)
    size = status.st_size
    head = _pread(fd, _END, 0)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16 text: save it as UTF-8")
    if head in (b"", _BOM):
        raise UserError(f"{path} is empty: it needs at least one row")
    if size < INDEX_FROM_BYTES:
        return _Index(_scan(path, fd, size), size, None)
    identity = _identity(size, status.st_mtime_ns, head, _pread(fd, _END, max(0, size - _END)))
    places = _places(absolute)
    for place in places:
        if (offsets := _load(place, identity)) is not None:
            return _Index(offsets, size, place)
    for place in places:
        folder = os.path.dirname(place)
        try:
            os.makedirs(folder, exist_ok=True)
            if _read_only(folder):
                continue
            with _locked(place + ".lock", path):
                if (offsets := _load(place, identity)) is None:  # not made by another process while this one waited
                    _store(place, identity, _scan(path, fd, size))
                    offsets = _load(place, identity)
        except OSError as error:
            logger.debug("%s: no index at %s (%s)", path, place, error.strerror)
            continue
        if offsets is not None:
            return _Index(offsets, size, place)
    logger.warning("%s: its index can be kept nowhere, so every start scans it: set OFA_CACHE to a folder", path)
    return _Index(_scan(path, fd, size), size, None)


def _places(absolute: str) -> list[str]:
    """Where the index of a file may lie: beside it, or in the cache under a name that the whole path decides."""
    real = os.path.realpath(absolute)
    name = f"{os.path.basename(real)}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}"
    return [real + ".ofa-index.npy", str(cache_folder() / (name + ".ofa-index.npy"))]


def _read_only(folder: str) -> bool:
    return not (os.access(folder, os.W_OK) and os.stat(folder).st_mode & 0o222)  # root may write, but is not meant to


def _identity(size: int, mtime_ns: int, head: bytes, tail: bytes) -> np.ndarray:
    """int64[7]: what tells one state of a file from another."""
    digest = np.frombuffer(hashlib.sha256(head + tail).digest(), "<i8").astype(np.int64)
    return np.concatenate([np.array([_FORMAT, size, mtime_ns], np.int64), digest])


def _load(place: str, identity: np.ndarray) -> np.ndarray | None:
    """The offsets stored at `place`, mapped rather than read, or None if they are not those of this file."""
    try:
        stored = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # missing, cut short, or something else under that name
        return None
    if not isinstance(stored, np.ndarray) or stored.dtype != np.int64 or stored.ndim != 1 or len(stored) < _HEADER + 2:
        return None
    size, rows = int(identity[1]), len(stored) - _HEADER - 1
    offsets = stored[_HEADER:].view(np.ndarray)  # indexing a memmap is several times slower
    if not np.array_equal(stored[: _HEADER - 1], identity) or stored[_HEADER - 1] != rows:
        return None
    return offsets if offsets[0] in (0, len(_BOM)) and offsets[-1] in (size, size + 1) else None


def _store(place: str, identity: np.ndarray, offsets: np.ndarray) -> None:
    """Writes the index so that a reader sees all of it or nothing."""
    with replacing(place) as file:
        np.save(file, np.concatenate([identity, np.array([len(offsets) - 1], np.int64), offsets]))


@contextlib.contextmanager
def _locked(lock: str, path: str) -> Iterator[None]:
    """Lets one process at a time through. The system frees the lock of a process that dies, so none is ever stale."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: waiting for the process that indexes it", path)
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: index it side by side, the last one stays
                pass
        yield
        with contextlib.suppress(OSError):
            os.unlink(lock)  # whoever waits on it finds the finished index
    finally:
        os.close(fd)


def _scan(path: str, fd: int, size: int) -> np.ndarray:
    """int64[N + 1]: where each row begins, and one past the newline that ends the last, which a file may lack."""
    progress = _Progress(path, size)
    buffer = bytearray(min(_CHUNK, size))
    view = np.frombuffer(buffer, np.uint8)
    start = len(_BOM) if _pread(fd, len(_BOM), 0) == _BOM else 0
    found = [np.array([start], np.int64)]
    long_rows, position = None, 0
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        while length := file.readinto(buffer):
            if long_rows is None:
                long_rows = buffer.count(b"\n", 0, length) * _LONG_ROW < length
            newlines = _find_newlines(buffer, length) if long_rows else np.flatnonzero(view[:length] == 10)
            found.append(newlines + (position + 1))
            position += length
            progress.show(position)
    offsets = np.concatenate(found)
    if position != size:
        raise UserError(f"{path} changed while it was indexed: leave it alone during a run, and start again")
    return offsets if offsets[-1] == size else np.append(offsets, size + 1)


def _find_newlines(buffer: bytearray, length: int) -> np.ndarray:
    """int64[N]: as `flatnonzero` finds them, but faster where they are rare."""
    ends, at = array("q"), buffer.find(b"\n", 0, length)
    while at >= 0:
        ends.append(at)
        at = buffer.find(b"\n", at + 1, length)
    return np.array(ends, np.int64)


class _Progress:
    """Says how far the scan of a large file is: nothing in the first second, then every five."""

    def __init__(self, path: str, size: int):
        self.path, self.size = path, size
        self.begin = time.monotonic()
        self.next = self.begin + 1

    def show(self, position: int) -> None:
        now = time.monotonic()
        if now >= self.next:
            left = (now - self.begin) * (self.size - position) / position
            logger.info("%s: indexing, %d %% done, %.0f s left", self.path, 100 * position / self.size, left)
            self.next = now + 5
