"""The palette quantiser: fixed colours, central cells, one code each."""

import numpy as np
import pytest
from PIL import Image

from ofa_plugin.data.palette import CODES, codebook, decode, encode


def test_a_mosaic_of_codebook_colours_comes_back_as_its_codes():
    codes = list(range(CODES))
    assert encode(decode(codes), 128) == codes


def test_only_the_central_square_is_encoded():
    image = Image.new("RGB", (256, 256), (255, 255, 255))
    image.paste((0, 0, 0), (64, 64, 192, 192))
    assert encode(image, 128) == [0] * 256
    image.putpixel((63, 64), (255, 0, 0))
    assert encode(image, 128) == [0] * 256


def test_the_code_is_the_nearest_colour_to_the_mean_of_a_cell():
    image = Image.new("RGB", (16, 16), (0, 0, 0))
    image.paste((255, 255, 255), (8, 0, 16, 8))
    image.paste((200, 100, 90), (0, 8, 8, 16))
    codes = encode(image, 16)
    distances = np.abs(codebook().astype(int) - (200, 100, 90)).max(1)
    assert codes[:2] == [0, 255]
    assert distances[codes[2]] == distances.min()


@pytest.mark.parametrize("size, side", [((100, 200), 128), ((64, 64), 60)])
def test_a_picture_without_that_centre_is_refused(size, side):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        encode(Image.new("RGB", size), side)


@pytest.mark.parametrize("codes", [[0, 1], [0, 0, 0, 256], [-1]])
def test_codes_that_are_no_square_of_numbers_are_refused(codes):
    with pytest.raises(ValueError, match="no square"):
        decode(codes)
