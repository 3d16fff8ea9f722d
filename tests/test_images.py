"""Page images: whatever a file holds becomes RGB, or an error that names it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from embedding import page
from llmquant.errors import ItemError
from llmquant.retrieval.images import decode, thumbnail
from llmquant.retrieval.items import Item


def _encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png_header(width: int, height: int) -> bytes:
    """A PNG of that size whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "PPM"])
def test_common_formats_become_rgb(kind):
    """A page in any common format is decoded at its size."""
    image = decode(page("hello", kind=kind), "a page")
    assert (image.mode, image.size) == ("RGB", (120, 160))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_a_cut_off_file_is_an_error_that_names_it(kind):
    """Half of a file is not a page with a grey half."""
    data = _encoded(Image.effect_noise((200, 200), 80).convert("RGB"), kind)
    with pytest.raises(ItemError, match=r"report-7\.png"):
        decode(data[: len(data) // 2], "report-7.png")


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"", "0 bytes"), (b"%PDF-1.7 ...", "a PDF"), (b"no image at all", "15 bytes"), (b"\x89PNG\r\n\x1a\n", "damaged")],
)
def test_what_is_no_image_is_told(data, found):
    """An empty file, a PDF, text and a bare signature are refused with what was found."""
    with pytest.raises(ItemError, match=rf"page 3 .*{found}"):
        decode(data, "page 3")


def test_changed_bytes_are_an_error():
    """Compressed data that does not decompress is refused."""
    data = bytearray(_encoded(Image.effect_noise((100, 100), 80)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ItemError, match="page 3 is damaged"):
        decode(bytes(data), "page 3")


@pytest.mark.parametrize("side", [9500, 10_001, 15_000, 60_000])
def test_too_many_pixels_are_refused_without_a_warning(side):
    """The size is read from the header, also where Pillow would only warn, and its limit is as it was afterwards."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ItemError) as raised:
            decode(_png_header(side, side), "poster.png", max_pixels=90_000_000)
    assert f"poster.png has {side} x {side} pixels" in str(raised.value)
    assert "smaller" in raised.value.hint
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_large_page_within_the_limit_is_decoded_without_a_warning():
    """95 megapixels are over Pillow's limit and under ours."""
    data = _encoded(Image.new("1", (10_000, 9500), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, "poster").size == (10_000, 9500)


def test_threads_leave_pillows_limit_alone():
    """Many threads at once decode, and put back what they found."""
    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda _: decode(page("x"), "a page"), range(100)))) == 100
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_what_is_transparent_is_white(mode):
    """Transparent pixels show white paper, whatever colour they hide."""
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0, 255, 0, 0])
        data = _encoded(image, transparency=0)
    elif mode == "1":
        data = _encoded(Image.new("L", (4, 4), 0), transparency=0)
    else:
        data = _encoded(Image.new(mode, (4, 4), 0))
    assert decode(data, "a page").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_rgb():
    """Print colours are converted."""
    data = _encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    red, green, blue = decode(data, "a page").getpixel((4, 4))
    assert red > 200
    assert max(green, blue) < 60


def test_sixteen_bit_grey_is_scaled():
    """Half of 65535 is middle grey, not white."""
    data = _encoded(Image.fromarray(np.full((4, 4), 32768, np.uint16)))
    assert decode(data, "a scan").getpixel((0, 0)) == (128, 128, 128)


def test_exif_orientation_is_applied():
    """A page photographed sideways is upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(_encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif), "a photo").size == (10, 20)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_is_taken(kind):
    """An animation or a TIFF of many pages stands for its first."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data, "a page").getpixel((8, 8)) == (255, 0, 0)


def test_a_damaged_exif_block_does_not_lose_the_page():
    """Only the orientation is read from it, and it says none."""
    data = _encoded(Image.new("RGB", (20, 10)), "JPEG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert decode(data, "a photo").size == (20, 10)


def test_a_thumbnail_keeps_the_shape():
    """It is as wide as asked, and small."""
    small = thumbnail(page("hello", size=(600, 800)), 150)
    assert Image.open(io.BytesIO(small)).size == (150, 200)
    assert len(small) < 10_000


def test_a_thumbnail_is_never_larger_than_its_page():
    """A small image keeps its size, and a long one is cut in width rather than shown metres high."""
    assert Image.open(io.BytesIO(thumbnail(page(size=(40, 30)), 150))).size == (40, 30)
    assert max(Image.open(io.BytesIO(thumbnail(page(size=(100, 4000)), 150))).size) == 300


def test_an_item_is_read_from_a_file(tmp_path):
    """A page's bytes are kept as they are and it is called by its file; one of zero bytes is refused by name."""
    (tmp_path / "page.png").write_bytes(page("a"))
    item = Item.from_file(tmp_path / "page.png")
    assert (item.image, item.name) == (page("a"), "page.png")
    (tmp_path / "none.png").touch()
    with pytest.raises(ItemError, match=r"none\.png is empty"):
        Item.from_file(tmp_path / "none.png")
