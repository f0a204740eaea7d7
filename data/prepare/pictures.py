"""Pictures: found from what an annotation calls them, and stored as the cells of rows."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..image import FORMATS, ImageProblem, ImageReader, read_header
from ..palette import CELL, encode
from .report import Place, Report, RowProblem, plain
from .spool import Spool

OTHER_NAME = "pictures found under another extension or in other letters"

_NUMBER = re.compile(r"(\d+)$")
_JPEG = b"\xff\xd8\xff"
_QUALITY = 95
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class PictureFinder:
    """Files by the names that annotations use: a path, or the number of `COCO_train2014_000000000123.jpg`.

    A path starts in `images` or, if nothing is there, beside the file that names it, and leads out of neither. Where
    no such file exists, one whose path differs only in upper and lower case and in its extension is taken, if it is
    the only one. A number is that at the end of the name of exactly one picture below `images`.

    Args:
        images: the folder.
        spool: keeps the list of the folder's files, made when a name is not found as it stands.
    """

    def __init__(self, images: Path, spool: Spool, report: Report):
        self.images, self.spool, self.report = images, spool, report
        self.listed = False

    def find(self, reference: object, place: Place) -> str:
        """The file of a picture.

        Args:
            reference: a path, or a number.
            place: what names it.

        Raises:
            RowProblem: there is no such file, or more than one.
        """
        if isinstance(reference, int) and not isinstance(reference, bool):
            return self._only("number", reference, f"picture with the number {reference}")
        if not isinstance(reference, str) or not reference.strip():
            reason = "no picture is named" if not reference else f"picture {reference!r} is no path"
            raise RowProblem(reason, "give its path below --images")
        if reference.startswith(("http://", "https://")):
            raise RowProblem(f"{reference!r} is a web address", "download the picture and give its path")
        parts = reference.replace("\\", "/").split("/")
        if "\0" in reference or ".." in parts:
            raise RowProblem(f"{reference!r} leaves the folder", f"give a path below {self.images}, without ..")
        for root in (self.images, Path(place.file).parent):
            path = os.path.join(root, *parts) if parts[0] else reference
            if parts[0] == "" and not os.path.abspath(path).startswith(os.path.abspath(root) + os.sep):
                continue
            if os.path.isfile(path):
                return os.path.normpath(path)
        if reference.isdecimal():
            return self._only("number", int(reference), f"picture {reference!r}")
        stem = os.path.splitext("/".join(parts))[0].lower()
        path = self._only("stem", stem, f"picture {reference!r}", parts[-1])
        self.report.change(OTHER_NAME, f"{place}: {reference} is {os.path.relpath(path, self.images)}")
        return path

    def all(self) -> list[str]:
        """Every file below the folder but hidden ones, in order."""
        found = []
        for folder, folders, files in os.walk(self.images, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [os.path.join(folder, name) for name in sorted(files) if not name.startswith(".")]
        return found

    def name(self, path: str) -> str:
        """What a picture without an id is called: its path below the folder."""
        relative = os.path.relpath(path, self.images)
        return " ".join(plain(relative).split())

    def _only(self, column: str, value: str | int, name: str, file: str = "") -> str:
        if not self.listed:
            for path in self.all():
                stem = os.path.splitext(os.path.relpath(path, self.images))[0].replace(os.sep, "/").lower()
                number = _NUMBER.search(stem)
                self.spool.put_stored(path, stem, int(number[1]) if number and len(number[1]) < 19 else None)
            self.listed = True
        found = self.spool.stored(column, value) if not isinstance(value, int) or abs(value) < 1 << 63 else []
        if not found:
            beside = f"; {file} itself lies there: one folder too deep?" if (self.images / file).is_file() else ""
            raise RowProblem(f"no {name} in {self.images}{beside}", "check --images")
        if len(found) > 1:
            both = " and ".join(os.path.relpath(path, self.images) for path in found)
            raise RowProblem(f"{name} may be {both}", "point --images at one folder, or write the whole path")
        return os.path.normpath(found[0])


class Stored(NamedTuple):
    """A picture as rows hold it."""

    cell: str  # base64 or a path
    size: tuple[int, int]  # width and height of the file, pixels
    scale: tuple[float, float]  # the stored width and height, divided by those
    code_cell: str  # base64 of the square that has codes, or ""
    codes: str
    changes: list[str]


class PictureStore:
    """Makes cells of picture files.

    A file goes into its cell as it is, whatever its format. A picture that is made smaller, or cut to the square that
    has image codes, is written again: as a JPEG of quality 95 if it was a JPEG, else as a PNG. Codes are those of the
    square as it is then read, so a row agrees with itself.

    Args:
        root: a cell is the path from this folder; None: the file itself, in base64.
        max_side: pixels that the longer side may have; None: any number.
        code_side: half the side of the square, whose central quarter has codes; None: no square.
    """

    def __init__(self, root: Path | None, max_side: int | None, code_side: int | None):
        self.root, self.max_side, self.code_side = root, max_side, code_side
        self.reader = ImageReader(None)

    def __call__(self, path: str) -> Stored:
        """The cells of a picture.

        Raises:
            RowProblem: it cannot be read.
        """
        try:
            data = self.reader.file(path)
            changes = [f"pictures with {oddity}" for oddity in read_header(data).oddities]
            image = self.reader.decode(data)
        except ImageProblem as error:
            raise RowProblem(f"{path}: {error.reason}", "replace the picture, or delete its rows") from error
        jpeg = data.startswith(_JPEG)
        width, height = image.size
        stored = image.size
        if self.max_side is not None and max(image.size) > self.max_side:
            shrink = self.max_side / max(image.size)
            stored = max(1, round(width * shrink)), max(1, round(height * shrink))
            smaller = image.resize(stored, Image.Resampling.LANCZOS)
            data = _file(smaller, jpeg, image.info.get("exif", b""))
        cell = base64.b64encode(data).decode() if self.root is None else self._path(path)
        square, codes = self._square(image, jpeg) if self.code_side else ("", "")
        return Stored(cell, image.size, (stored[0] / width, stored[1] / height), square, codes, changes)

    @property
    def settings(self) -> tuple[str, int | None, int | None]:
        """All that a cell depends on but the picture's file."""
        return "" if self.root is None else os.path.abspath(self.root), self.max_side, self.code_side

    def keeps_file(self, stored: Stored) -> bool:
        """Whether a cell holds the picture's file as it is."""
        return self.root is None and stored.scale == (1.0, 1.0)

    def _square(self, image: Image.Image, jpeg: bool) -> tuple[str, str]:
        """The central square with `2 * code_side` pixels, and the codes of its middle.

        As if the shorter side were resized and the rest cut off, but a picture of 1 x 2000 does not grow on the way.
        """
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        full = 2 * self.code_side
        square = image.resize((full, full), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        data = _file(square, jpeg)
        codes = encode(self.reader.decode(data), self.code_side)
        return base64.b64encode(data).decode(), " ".join(map(str, codes))

    def _path(self, path: str) -> str:
        relative = os.path.relpath(os.path.abspath(path), os.path.abspath(self.root)).replace(os.sep, "/")
        if any(character in relative for character in "\t\r\n") or not relative.isprintable() or "." not in relative:
            raise RowProblem(f"{relative!r} cannot be a path in a row", "rename it to printable letters, with a dot")
        return relative


def check_code_side(side: int) -> None:
    """Raises ValueError for a `--code-image-size` that cells of 8 pixels do not fill."""
    if side < CELL or side % CELL:
        raise ValueError(f"{side} is no multiple of {CELL}")


def is_picture(path: str) -> bool:
    """Whether a file is meant to be a picture: by its content or, if that is damaged, by its extension."""
    if path.lower().endswith(_EXTENSIONS):
        return True
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # Pillow raises nearly anything on a file that is no picture
        return False


def _file(image: Image.Image, jpeg: bool, exif: bytes = b"") -> bytes:
    file = io.BytesIO()
    if jpeg:
        image.save(file, "JPEG", quality=_QUALITY, subsampling=0, exif=exif)
    else:
        image.save(file, "PNG")
    return file.getvalue()
