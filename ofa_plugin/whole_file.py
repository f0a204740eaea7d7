"""Files that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], text: bool = False, shared: bool = True) -> Iterator[IO]:
    """A file that takes the place of `path` when the block ends well: data on the disk first, then the name.

    A crash at any moment leaves the old file or the new one. An error leaves the old file and no rest.

    Args:
        path: its name; the folder is there.
        text: UTF-8 with plain newlines, instead of bytes.
        shared: other processes may write it at the same moment. If not, what a killed one has left is overwritten, so
            that large files do not pile up.
    """
    path = os.fspath(path)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp" if shared else f"{path}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") if text else open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a directory be synced
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
