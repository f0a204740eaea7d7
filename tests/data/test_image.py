import base64
import io
import json
import multiprocessing
import os
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from ofa_plugin.data import image as image_module
from ofa_plugin.data.image import ImageProblem, ImageReader, PatchImage, PictureLoader, normalise
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "text"


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """The synthetic picture of the reference fixtures."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = (7 * x + 3 * y) % 256, (5 * x + 11 * y + 17) % 256, (x * y) % 256
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def cell(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that is hardly more than its size."""
    return png((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 1000)))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def problem(reader, cell: str) -> str:
    with pytest.raises(ImageProblem) as caught:
        reader(cell)
    assert isinstance(caught.value, UserError)
    return str(caught.value)


# Parity


@pytest.mark.parity
@pytest.mark.parametrize("imagenet", [False, True])
def test_patches_are_official(imagenet):
    golden = json.loads((FIXTURES / "dataset_caption.json").read_text())
    expected = golden["imagenet_mean_std_patch"] if imagenet else golden["cases"][0]["example"]["patch_image"]
    square = PictureLoader(".", 32)(base64.urlsafe_b64encode(encoded(picture())).decode())
    assert square.dtype == torch.uint8
    patches = normalise(square[None], imagenet)[0]
    assert list(patches.shape) == expected["shape"] and patches.dtype == torch.float32
    assert patches.mean().item() == pytest.approx(expected["mean"], abs=1e-6)
    assert patches.std().item() == pytest.approx(expected["std"], abs=1e-6)
    for (channel, y, x), value in expected["points"]:
        assert patches[channel, y, x].item() == pytest.approx(value, abs=5e-6)  # written with five digits


def test_normalise_is_a_float_tensor_and_leaves_its_input_alone():
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    before = batch.clone()
    floats = normalise(batch)
    assert torch.equal(batch, before)
    assert torch.equal(floats, (before.float() / 255 - 0.5) / 0.5)  # the order of official's operations, bit for bit


def test_fast_backend_is_within_one_level_on_photographs(shared):
    pytest.importorskip("simplejpeg")
    path = shared("data/coco/caption/train.tsv")
    cells = [row.image for row in TSVStore(path, ("image",), [4])][::10]
    for size in (480, 96):
        exact, fast = PictureLoader(path.parent, size), PictureLoader(path.parent, size, backend="fast")
        distance = torch.stack([(exact(cell).int() - fast(cell).int()).abs() for cell in cells])
        assert (distance <= 1).float().mean() > 0.99
        assert distance.max() <= 2


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), ("JPEG", "RGB"), ("PNG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA")],
)
def test_fast_backend_takes_every_picture(tmp_path, kind, mode):
    pytest.importorskip("simplejpeg")
    data = cell(encoded(picture(64, 64).convert(mode), kind))
    exact, fast = PictureLoader(tmp_path, 48)(data), PictureLoader(tmp_path, 48, backend="fast")(data)
    assert fast.shape == (3, 48, 48) and fast.dtype == torch.uint8 and fast.is_contiguous()
    assert (exact.int() - fast.int()).abs().max() <= 1


def test_fast_backend_without_simplejpeg_names_the_extra(monkeypatch):
    monkeypatch.setattr(image_module, "simplejpeg", None)
    with pytest.raises(UserError, match=r"--image-backend fast needs simplejpeg: pip install 'ofa-plugin\[fast\]'"):
        PictureLoader(".", 32, backend="fast")
    PictureLoader(".", 32)


def test_sizes_and_backends_are_checked():
    with pytest.raises(UserError, match="--image-backend 'magic': choose one of pil, fast"):
        PatchImage(32, "magic")
    with pytest.raises(UserError, match="--patch-image-size 0"):
        PatchImage(0)


# Cells


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", [True, False])
def test_base64_in_both_alphabets_with_and_without_padding(encode, padding):
    for extra in range(3):  # all three lengths modulo 3
        data = encoded(picture()) + b"\xfb\xff\xfe" * 3 + b"x" * extra  # + and / for sure; a PNG ends before them
        text = encode(data).decode()
        reader = ImageReader(".")
        assert reader.file(text if padding else text.rstrip("=")) == data
        assert reader(text).size == (40, 30)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=1), url_safe=st.booleans(), padding=st.booleans())
def test_base64_gives_back_the_bytes(data, url_safe, padding):
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    assert image_module._from_base64(text if padding else text.rstrip("=")) == data


@pytest.mark.parametrize("junk", [" ", "\n", "\r", "*", "é", "\0", "=", "😀"])
def test_base64_with_junk_is_refused(junk):
    text = cell(encoded(picture()))
    message = problem(ImageReader("."), text[:60] + junk + text[60:])
    assert f"neither base64 nor a path: character {junk!r}" in message
    assert message.endswith("give a path, or base64 as b64encode or urlsafe_b64encode of Python's base64 write it")


def test_base64_of_a_wrong_length_is_refused():
    text = cell(encoded(picture())).rstrip("=")
    text += "A" * (-len(text) % 4) + "A"
    assert f"base64 of {len(text)} characters that was cut short or joined" in problem(ImageReader("."), text)
    assert "cut short or joined" in problem(ImageReader("."), text[:-1] + "===")


def test_cells_that_are_no_pictures(tmp_path):
    reader = ImageReader(tmp_path)
    assert problem(reader, "").startswith("no image: ")
    assert problem(reader, "data:image/png;base64,AAAA") == "a data: URL: keep only what follows 'base64,'"
    assert problem(reader, "https://a.org/x.png").startswith("a web address: download the picture")
    assert problem(reader, cell(b"hello world!")).startswith("12 bytes that are no picture: give one of JPEG, PNG")
    assert problem(reader, cell(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")).endswith("TIFF")


# Paths


def test_paths_beside_the_tsv(tmp_path):
    (tmp_path / "a b").mkdir()
    for name in ("a b/ü.x.PNG", "plain", "0123456789abcdef"):  # the last could be base64, but is a file
        (tmp_path / name).write_bytes(encoded(picture()))
        assert ImageReader(tmp_path)(name).size == (40, 30)
    assert problem(ImageReader(tmp_path), "nope.png") == (
        f"no picture 'nope.png' in {tmp_path}: check the path, which starts there"
    )


def test_no_path_leaves_the_data_folder(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "secret.png"
    data.mkdir()
    outside.write_bytes(encoded(picture()))
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "x.png").write_bytes(encoded(picture()))
    (data / "link.png").symlink_to(outside)
    (data / "folder").symlink_to(tmp_path)
    (data / "inside.png").write_bytes(encoded(picture()))
    (data / "alias.png").symlink_to("inside.png")
    reader = ImageReader(data)
    for path in (str(outside), "../secret.png", "folder/../../secret.png", "~/secret.png", "x\0.png"):
        assert f"{path!r} leaves the data folder: give a path relative to {data}" in problem(reader, path)
    for path in ("link.png", "folder/secret.png", "folder/data2/x.png"):
        assert f"{path!r} is a link that leaves the data folder: move it into {data}" in problem(reader, path)
    assert reader("alias.png").size == (40, 30)  # a link that stays inside
    (tmp_path / "mounted").symlink_to(data)
    assert ImageReader(tmp_path / "mounted")("inside.png").size == (40, 30)  # the folder itself may be one


def test_typed_paths_start_in_the_working_directory_and_lead_anywhere(tmp_path, monkeypatch):
    picture = Image.new("RGB", (3, 2), (9, 8, 7))
    for name in ("above.png", "here/plain", "home/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name, "PNG")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    read = ImageReader(None)
    for typed in ("plain", "../above.png", str(tmp_path / "above.png"), "~/mine.png"):
        assert read(typed).getpixel((0, 0)) == (9, 8, 7)
    with pytest.raises(ImageProblem, match=f"no picture 'gone': give its path from {tmp_path / 'here'}"):
        read("gone")  # a name without a dot is no base64 here
    with pytest.raises(ImageProblem, match="no picture"):
        read(base64.b64encode((tmp_path / "above.png").read_bytes()).decode())
    with pytest.raises(ImageProblem, match="a web address"):
        read("https://x.org/a.png")


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    reader = ImageReader(tmp_path)
    assert "'pipe.png' is not a file" in problem(reader, "pipe.png")  # and does not wait for a writer
    assert "'folder.png' is not a file" in problem(reader, "folder.png")
    assert "'loop.png'" in problem(reader, "loop.png")
    assert "cannot be read" in problem(reader, "x" * 300 + ".png")


# Formats


def test_format_is_decided_by_content(shared):
    folder = shared("fixtures/field-cases/fc09")
    expected = json.loads((folder.parent / "expected.json").read_text())["fc09"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, colour in zip(["a.png", "b.jpg", "c.jpeg", "d.PNG"], expected["patch_colours"], strict=True):
            pixels = np.asarray(ImageReader(folder)(f"img/{name}")).astype(int)
            assert np.abs(pixels - colour).max(axis=2).min() <= expected["tolerance"]


@pytest.mark.parametrize("backend", ["pil", "fast"])
def test_gallery_of_odd_pictures(shared, backend):
    if backend == "fast":
        pytest.importorskip("simplejpeg")
    path = shared("fixtures/field-cases/fc11/caption.tsv")
    expected = json.loads((path.parent.parent / "expected.json").read_text())["fc11"]
    reader, loader = ImageReader(path.parent), PictureLoader(path.parent, 24, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, text in TSVStore(path, ("name", "image"), [1, 4]):
            pixels = np.asarray(reader(text), dtype=float)
            assert loader(text).shape == (3, 24, 24)
            if name in expected["mean_rgb"]:
                distance = np.abs(pixels.mean(axis=(0, 1)) - expected["mean_rgb"][name])
                assert distance.max() <= expected["tolerance"], name
            if name == "rgba_hidden.png":  # alpha is dropped, as official
                assert pixels[:, 0].mean(axis=0).tolist() == [255, 0, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(2, axis=0)
    grey = np.asarray(ImageReader(".")(cell(encoded(Image.fromarray(ramp), kind))))
    assert grey[0, :, 0].tolist() == list(range(256))


def test_pixels_of_unknown_white_are_refused():
    for pixels in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), 100_000, np.int32)):
        message = problem(ImageReader("."), cell(encoded(Image.fromarray(pixels), "TIFF")))
        assert message.endswith("whose white is unknown: save it with 8 bits a channel")


@pytest.mark.parametrize("backend", ["pil", "fast"])
def test_exif_rotation_is_an_option(tmp_path, backend):
    if backend == "fast":
        pytest.importorskip("simplejpeg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    halves = Image.new("RGB", (64, 64))
    halves.paste((255, 255, 255), (0, 0, 32, 64))
    data = cell(encoded(halves, "JPEG", exif=exif, quality=95))
    stored = PictureLoader(tmp_path, 64, backend=backend)(data)
    turned = PictureLoader(tmp_path, 64, backend=backend, exif_transpose=True)(data)
    assert stored[:, :, :30].min() > 240 and stored[:, :, 34:].max() < 15
    assert turned[:, :30].min() > 240 and turned[:, 34:].max() < 15


# Damage and attacks


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("backend", ["pil", "fast"])
def test_truncated_pictures_are_refused_or_filled(tmp_path, kind, backend):
    if backend == "fast":
        pytest.importorskip("simplejpeg")
    whole = encoded(picture(400, 300), kind)
    data = cell(whole[: len(whole) // 2])
    message = problem(PictureLoader(tmp_path, 64, backend=backend), data)
    assert message.startswith("damaged picture (") and "--lenient-images" in message
    lenient = PictureLoader(tmp_path, 300, backend=backend, lenient=True)
    expected = PictureLoader(tmp_path, 300, backend=backend)(cell(whole))
    got = lenient(data)
    assert (got[:, :100].int() - expected[:, :100].int()).abs().max() <= 2
    assert got[:, 250:].float().std(dim=(1, 2)).max() < 1  # one colour
    assert (lenient(cell(whole)).int() - expected.int()).abs().max() == 0
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("PNG", "RGBA")],
)
def test_lenient_equals_pillows_own_switch(monkeypatch, kind, mode):
    whole = encoded(picture(200, 150).convert(mode), kind)
    reader = ImageReader(".", lenient=True)
    for part in (0.4, 0.7, 0.95):
        data = whole[: int(len(whole) * part)]
        ours = np.asarray(reader.decode(data))
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
            assert np.array_equal(ours, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_lenient_takes_an_interlaced_png_too(monkeypatch):
    pixels = np.asarray(picture(20, 20))
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # Adam7
    raw = b"".join(b"\0" + line.tobytes() for y, x, dy, dx in passes for line in pixels[y::dy, x::dx])
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 8, 2, 0, 0, 1)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")
    whole = png(*chunks)
    assert np.array_equal(np.asarray(ImageReader(".").decode(whole)), pixels)
    data = whole[: len(whole) // 2]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    official = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    monkeypatch.undo()
    ours = np.asarray(ImageReader(".", lenient=True).decode(data))
    assert (ours == official).all(axis=2).mean() > 0.97  # all but the row of pixels in which the file ends


def test_pictures_with_too_many_pixels_are_refused_by_their_header(tmp_path):
    for width, height in ((20_000, 20_000), (50_000, 50_000), (10_000, 9_000)):
        for lenient in (False, True):
            reader = ImageReader(tmp_path, lenient=lenient)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                message = problem(reader, cell(png_header(width, height)))
            assert "Pillow's limit" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warning as an error is ours too
        assert "Pillow's limit" in problem(ImageReader(tmp_path), cell(png_header(10_000, 9_000)))


def test_the_guard_holds_where_another_library_has_switched_it_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "Pillow's limit" in problem(ImageReader("."), cell(png_header(20_000, 20_000)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_are_pictures_or_problems(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]))
    mutated = bytearray(encoded(picture(16, 12), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    del mutated[data.draw(st.integers(1, len(mutated))) :]
    for lenient in (False, True):
        for backend in ("pil", "fast") if image_module.simplejpeg else ("pil",):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    loader = PictureLoader(".", 8, lenient=lenient, backend=backend)
                    assert loader(cell(bytes(mutated))).shape == (3, 8, 8)
                except ImageProblem as error:
                    assert "\n" not in str(error)


def test_no_process_wide_switch_is_touched():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:], torch.get_num_threads()
    PictureLoader(".", 8, lenient=True, exif_transpose=True)(cell(encoded(picture(), "JPEG")[:900]))
    assert before == (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        warnings.filters[:],
        torch.get_num_threads(),
    )


# Workers


def load(loader, text, results):
    results.put(loader(text).numpy().tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loaders_work_in_workers(tmp_path, method):
    context = multiprocessing.get_context(method)
    loader, text = PictureLoader(tmp_path, 16), cell(encoded(picture()))
    results = context.SimpleQueue()
    worker = context.Process(target=load, args=(loader, text, results))
    worker.start()
    got = results.get()
    worker.join()
    assert got == loader(text).numpy().tobytes()


def test_problems_pickle_and_threads_share_a_reader():
    error = pickle.loads(pickle.dumps(ImageProblem("a", "b")))
    assert (error.reason, error.remedy, str(error)) == ("a", "b", "a: b")
    loader, text, got = PictureLoader(".", 32), cell(encoded(picture())), []
    threads = [threading.Thread(target=lambda: got.append(loader(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and all(torch.equal(tensor, got[0]) for tensor in got)
