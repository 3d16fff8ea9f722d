"""Page images: turn a file's bytes into RGB pixels or a thumbnail."""

from __future__ import annotations

import io
import threading

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llmquant.errors import ItemError

# An A4 page at 600 dots per inch has 35 million pixels, and so has an A2 poster at 300 dots per inch.
MAX_PIXELS = 100_000_000

# Only pictures: Pillow also opens PostScript, by starting Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF", "PPM")
# Other kinds of file that people pass as images by mistake, by their first bytes.
_OTHERS = {b"%pdf": "a PDF", b"%!ps": "PostScript", b"<svg": "an SVG", b"<?xm": "XML", b"<htm": "HTML", b"<!do": "HTML"}
_SUBFILE_TYPE = 254  # TIFF's tag NewSubfileType, whose first bit means a copy in reduced resolution
_opening = threading.Lock()


def decode(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image (its first frame if there are several), upright, with transparent parts on white.

    Args:
        data: a file's bytes.
        name: the image's name in messages.
        max_pixels: a larger image is refused from its header, before it is decoded.

    Returns:
        The image in RGB.

    Raises:
        ItemError: if the data is empty, damaged, cut off, not an image, or too large.
    """
    if not data:
        raise ItemError(f"{name} is empty: 0 bytes")
    try:
        image = _open(data)
        width, height = image.size
        if width * height <= max_pixels:
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        found = _OTHERS.get(data[:4].lower(), f"{len(data)} bytes, first {data[:8]!r}")
        raise ItemError(
            f"{name} is not an image, or its header is damaged: found {found}",
            hint=f"Supported formats: {', '.join(_FORMATS)}.",
        ) from error
    except MemoryError:  # the machine's fault, not the image's
        raise
    except Exception as error:  # Pillow's decoders raise almost any error for damaged data
        raise ItemError(f"{name} is damaged and cannot be decoded: {error} ({len(data)} bytes)") from error
    raise ItemError(
        f"{name} has {width} x {height} pixels, {width * height / 1e6:.0f} megapixels: more than {max_pixels / 1e6:g}",
        hint="Render or scale the page smaller: at 200 dots per inch an A4 page has 4 megapixels.",
    )


def tiff_pages(data: bytes) -> int:
    """Count a TIFF file's pages without decoding them; smaller copies of a page do not count.

    Returns:
        1 for a damaged file, which `decode` reports.
    """
    try:
        with _open(data) as image:
            pages = 0
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                pages += not image.getexif().get(_SUBFILE_TYPE, 0) & 1
            return pages
    except Exception:  # as in `decode`
        return 1


def thumbnail(data: bytes, width: int, *, name: str = "the image") -> bytes:
    """Make a small copy of an encoded image for a report.

    Args:
        width: maximum width in pixels; a smaller image keeps its size, and the height is at most twice `width`.

    Returns:
        The bytes of a WebP file.

    Raises:
        ItemError: as in `decode`.
    """
    image = decode(data, name)
    image.thumbnail((width, 2 * width))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=75)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    # Pillow's own limit only warns at the sizes allowed here, through filters that are not thread-safe. Pillow reads
    # the limit only from this name, so it is lifted while the header is read; `decode` checks the size before decoding.
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255, which turns a page white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels have 32 bits in mode {image.mode}, whose white value is unknown")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.new("RGBA", above.size, "white")
        image.alpha_composite(above)
    return image.convert("RGB")
