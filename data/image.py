"""From the image cell of a row to pixels: base64 or a path, any common format, a square of uint8.

The "pil" backend is bit-equal to the official pipeline up to the float conversion, which `normalise` does for a whole
batch. The "fast" backend stays within one level of it.
"""

from __future__ import annotations

import binascii
import io
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import Problem, UserError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # by content, never by name; no EPS: it runs Ghostscript
BACKENDS = ("pil", "fast")

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_LONGEST_PATH = 1024
_EXIF_WITHIN = 1 << 17  # bytes; the EXIF segment is among the first and at most 64 KiB long
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and standard deviation of red, green and blue
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PIXEL_LIMIT = 89_478_485  # Pillow's own, should another library have switched it off for the whole process
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


class ImageProblem(Problem):
    """A picture that cannot be used."""


class ImageReader:
    """Turns an image cell into an RGB picture.

    A cell is base64 of an encoded picture, in the standard or the URL-safe alphabet, or a path relative to `root`. A
    cell with a dot is a path, since neither alphabet has one; one without is a path where there is such a file.

    Alpha is dropped, as official does: colours hidden under transparency become visible. Sixteen-bit grey is scaled to
    eight bits (official clips it to white). Of an animation the first frame is taken.

    Args:
        root: the folder of the TSV. No path may leave it, by `..` or by a link. None: a cell is a path that the user
            typed, which starts in the working directory and may lead anywhere.
        exif_transpose: turn the picture as its EXIF entry says. Off, as official: boxes are in stored pixels.
        lenient: accept JPEG and PNG files that are cut short; the missing part is grey or black, as official shows it.
    """

    def __init__(self, root: str | os.PathLike[str] | None, *, exif_transpose: bool = False, lenient: bool = False):
        self.root = None if root is None else Path(root).resolve()
        self.exif_transpose = exif_transpose
        self.lenient = lenient

    def __call__(self, cell: str) -> Image.Image:
        """The picture of a cell, mode RGB. Raises ImageProblem for whatever prevents that."""
        return self.decode(self.file(cell))

    def file(self, cell: str) -> bytes:
        """The bytes of the encoded picture that a cell holds or names."""
        if not cell:
            raise ImageProblem("no image", "give base64 of a picture or a path beside the TSV")
        if cell.startswith("data:"):
            raise ImageProblem("a data: URL", "keep only what follows 'base64,'")
        if cell.startswith(("http://", "https://")):
            raise ImageProblem("a web address", "download the picture and give its path: rows fetch nothing")
        if self.root is None:
            return self._from_path(cell)
        if len(cell) > _LONGEST_PATH:
            return _from_base64(cell)
        try:
            return self._from_path(cell)
        except ImageProblem:
            if "." in cell:
                raise
        return _from_base64(cell)

    def decode(self, data: bytes) -> Image.Image:
        """Encoded bytes to a picture of mode RGB. Raises ImageProblem."""
        if self.lenient:
            data = _mended(data)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_pixels(*image.size)
            image.load()
            if self.exif_transpose:
                image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
        except ImageProblem:
            raise
        except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
            raise _explained(error, len(data), strict=not self.lenient) from error

    def _from_path(self, cell: str) -> bytes:
        root = self.root
        if root is not None and ("\0" in cell or cell.startswith(("/", "~")) or ".." in cell.split("/")):
            raise ImageProblem(f"{cell!r} leaves the data folder", f"give a path relative to {root}, without ..")
        try:
            path = (Path(cell).expanduser() if root is None else root / cell).resolve(strict=True)
            if root is not None and not path.is_relative_to(root):
                raise ImageProblem(f"{cell!r} is a link that leaves the data folder", f"move it into {root}")
            if not path.is_file():  # a pipe would wait for its writer
                raise ImageProblem(f"{cell!r} is not a file", "give the path of a picture")
            return path.read_bytes()
        except FileNotFoundError as error:
            if root is None:
                raise ImageProblem(f"no picture {cell!r}", f"give its path from {Path.cwd()}, or whole") from error
            raise ImageProblem(f"no picture {cell!r} in {root}", "check the path, which starts there") from error
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
            reason = getattr(error, "strerror", None) or error
            raise ImageProblem(f"{cell!r} cannot be read ({reason})", "check the path and its permissions") from error


class PatchImage:
    """Resizes a picture to a square of uint8, its sides' ratio not kept (official `Resize((S, S))`, bicubic).

    Args:
        size: S, pixels.
        backend: "pil", bit-equal to official, or "fast", torch's own resize, at most one level away from it.
    """

    def __init__(self, size: int, backend: str = "pil"):
        if size < 1:
            raise UserError(f"--patch-image-size {size}: give a positive number of pixels")
        if backend not in BACKENDS:
            raise UserError(f"--image-backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        self.size = size
        self.backend = backend

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB picture to uint8[3, S, S]."""
        if self.backend == "fast":
            return self.resize(np.array(image))
        return pixels(image.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def resize(self, pixels: np.ndarray) -> Tensor:
        """uint8[H, W, 3] to uint8[3, S, S] by torch, with antialiasing."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels last in memory, which torch resizes fastest
        square = F.interpolate(image, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        return square[0].contiguous()


class PictureLoader:
    """An image cell to uint8[3, S, S]: `ImageReader` and `PatchImage` in one, which is what builders call.

    Args:
        root, exif_transpose, lenient: as `ImageReader`.
        size, backend: as `PatchImage`. "fast" decodes plain colour JPEGs with simplejpeg, everything else with Pillow.

    Raises:
        UserError: backend "fast" without simplejpeg.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        size: int,
        *,
        exif_transpose: bool = False,
        lenient: bool = False,
        backend: str = "pil",
    ):
        self.reader = ImageReader(root, exif_transpose=exif_transpose, lenient=lenient)
        self.patch = PatchImage(size, backend)
        if backend == "fast" and simplejpeg is None:
            raise UserError("--image-backend fast needs simplejpeg: pip install 'ofa-plugin[fast]'")

    def __call__(self, cell: str) -> Tensor:
        """The square of a cell. Raises ImageProblem."""
        data = self.reader.file(cell)
        if self.patch.backend == "fast" and (pixels := self._plain_jpeg(data)) is not None:
            return self.patch.resize(pixels)
        return self.patch(self.reader.decode(data))

    def _plain_jpeg(self, data: bytes) -> np.ndarray | None:
        """uint8[H, W, 3], or None for whatever Pillow should judge: other formats and colours, rotation, damage."""
        if not data.startswith(_JPEG) or (self.reader.exif_transpose and b"Exif" in data[:_EXIF_WITHIN]):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours != "YCbCr" or width * height > _pixel_limit():
                return None
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            return None


ROTATED = "an EXIF rotation, not applied (see --exif-transpose of training)"
HIDDEN = "transparency, whose hidden colours show"
ANIMATED = "several frames, of which the first counts"
SIXTEEN = "16 bits a channel, scaled to 8"
CMYK = "CMYK, turned into RGB"
LONG = "sides of 20 to 1 or more"
_LONG = 20
_ORIENTATION = 0x0112  # of EXIF


class Header(NamedTuple):
    """What a picture file says of itself before its pixels are read."""

    size: tuple[int, int]  # width and height, pixels
    format: str
    oddities: tuple[str, ...]  # what a reader does not expect of it


def read_header(data: bytes) -> Header:
    """The header of an encoded picture. Raises ImageProblem as `ImageReader.decode`, but reads no pixel."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size)
            mode, has_exif = image.mode, image.format != "PNG" or "exif" in image.info  # else Pillow reads all pixels
            found = {
                ROTATED: has_exif and image.getexif().get(_ORIENTATION, 1) != 1,
                HIDDEN: mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
                ANIMATED: getattr(image, "is_animated", False),
                SIXTEEN: mode.startswith("I"),
                CMYK: mode == "CMYK",
                LONG: max(image.size) >= _LONG * min(image.size),
            }
            return Header(image.size, image.format or "", tuple(name for name, there in found.items() if there))
    except ImageProblem:
        raise
    except Exception as error:  # as in `decode`
        raise _explained(error, len(data)) from error


def _explained(error: Exception, length: int, strict: bool = False) -> ImageProblem:
    """Why Pillow could not read a picture of so many bytes."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageProblem("more pixels than Pillow's limit", "shrink the picture")
    if isinstance(error, Image.UnidentifiedImageError):
        return ImageProblem(f"{length} bytes that are no picture", f"give one of {', '.join(FORMATS)}")
    reason = " ".join(str(error).split()) or type(error).__name__
    remedy = "replace it, or accept truncated ones with --lenient-images" if strict else "replace it"
    return ImageProblem(f"damaged picture ({reason})", remedy)


def pixels(image: Image.Image) -> Tensor:
    """An RGB picture to uint8[3, h, w], its size kept."""
    channels = b"".join([image.tobytes("raw", channel) for channel in "RGB"])  # planes, without a transpose
    return torch.frombuffer(bytearray(channels), dtype=torch.uint8).view(3, image.height, image.width)


def normalise(batch: Tensor, imagenet: bool = False) -> Tensor:
    """uint8[..., 3, S, S] to float32 of the same shape: `(u / 255 - mean) / std` for each channel.

    Mean and deviation are 0.5, or ImageNet's with `--imagenet-default-mean-and-std` (official data/mm_data).
    """
    mean, std = _IMAGENET if imagenet else _HALF
    shape = (3, 1, 1)
    scaled = batch.to(torch.float32).div_(255)
    return scaled.sub_(scaled.new_tensor(mean).view(shape)).div_(scaled.new_tensor(std).view(shape))


def mean_colour(imagenet: bool = False) -> tuple[int, int, int]:
    """The colour that `normalise` takes to zero, in whole levels."""
    red, green, blue = (round(255 * mean) for mean in (_IMAGENET if imagenet else _HALF)[0])
    return red, green, blue


def _from_base64(cell: str) -> bytes:
    """Strict: both alphabets, padding or none, and not one character more. Official drops what it does not know."""
    remedy = "give a path, or base64 as b64encode or urlsafe_b64encode of Python's base64 write it"
    try:
        data = cell.encode("ascii")
    except UnicodeEncodeError as error:
        raise ImageProblem(f"neither base64 nor a path: character {cell[error.start]!r}", remedy) from error
    data = data.rstrip(b"=")
    if b"-" in data or b"_" in data:
        data = data.translate(_FROM_URL_SAFE)
    if junk := data.translate(None, _BASE64):
        raise ImageProblem(f"neither base64 nor a path: character {chr(junk[0])!r}", remedy)
    if len(cell) - len(data) > 2 or len(data) % 4 == 1:
        raise ImageProblem(f"base64 of {len(cell)} characters that was cut short or joined", remedy)
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4))


def _pixel_limit() -> int:
    return Image.MAX_IMAGE_PIXELS or _PIXEL_LIMIT


def _check_pixels(width: int, height: int) -> None:
    if width * height > _pixel_limit():
        raise ImageProblem(f"{width} x {height} pixels, more than Pillow's limit of {_pixel_limit()}", "shrink it")


def _to_rgb(image: Image.Image) -> Image.Image:
    """As `convert("RGB")`, alpha dropped, but with 16-bit grey scaled where Pillow would clip it."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageProblem("32-bit pixels, whose white is unknown", "save it with 8 bits a channel")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ImageProblem("floating-point pixels, whose white is unknown", "save it with 8 bits a channel")
    image.info.pop("transparency", None)  # else Pillow advises RGBA, once for every picture
    return image if image.mode == "RGB" else image.convert("RGB")


def _mended(data: bytes) -> bytes:
    """A truncated JPEG or PNG made whole, so that no process-wide switch of Pillow's need be touched."""
    if data.startswith(_JPEG):
        return data + b"\xff\xd9"  # end marker: libjpeg fills the rest with grey; a whole picture ignores it
    if data.startswith(_PNG):
        return _mended_png(data)
    return data


def _mended_png(data: bytes) -> bytes:
    """The pixel rows that are there, and black ones for the rest."""
    chunks, packed, at = [], [], len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return data
        body = data[at + 8 : at + 8 + length]
        if kind == b"IDAT":
            packed.append(body)
        elif len(body) == length:
            chunks.append((kind, body))
        at += 12 + length
    if not packed or not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return data
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    _check_pixels(width, height)
    row = 1 + (width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4) + 7) // 8
    whole = row * height
    if interlace:
        whole += 8 * height + 64  # seven passes have more filter bytes; a decoder ignores what is too much
    try:
        raw = zlib.decompressobj().decompress(b"".join(packed), max(whole, 1))  # 0 would mean without limit
    except zlib.error:
        return data
    if not interlace:
        raw = raw[: len(raw) // row * row]
    chunks += [(b"IDAT", zlib.compress(raw.ljust(whole, b"\0"), 1)), (b"IEND", b"")]
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
