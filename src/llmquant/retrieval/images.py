"""Page images: from the bytes of a file to RGB pixels, and to a thumbnail."""

from __future__ import annotations

import io
import threading

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llmquant.errors import ItemError

# An A4 page at 600 dots an inch has 35 million pixels, an A2 poster at 300 has 35 too.
MAX_PIXELS = 100_000_000

# Pictures only. Pillow also opens PostScript, by starting Ghostscript on it.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF", "PPM")
# What people pass as an image by mistake, by how it begins.
_OTHERS = {b"%pdf": "a PDF", b"%!ps": "PostScript", b"<svg": "an SVG", b"<?xm": "XML", b"<htm": "HTML", b"<!do": "HTML"}
_opening = threading.Lock()


def decode(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image, the first frame of several, upright and on white where it is transparent.

    Args:
        data: a file's bytes.
        name: how messages call it.
        max_pixels: a larger image is refused from its header, before it is decoded.

    Returns:
        RGB.

    Raises:
        ItemError: if it is empty, damaged, cut off, no image, or too large.
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
            hint=f"Images are {', '.join(_FORMATS)}.",
        ) from error
    except MemoryError:  # the machine's fault, not the image's
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything at damaged data
        raise ItemError(f"{name} is damaged and cannot be decoded: {error} ({len(data)} bytes)") from error
    raise ItemError(
        f"{name} has {width} x {height} pixels, {width * height / 1e6:.0f} megapixels: more than {max_pixels / 1e6:g}",
        hint="Render or scale the page smaller: at 200 dots an inch an A4 page has 4 megapixels.",
    )


def thumbnail(data: bytes, width: int, *, name: str = "the image") -> bytes:
    """Make a small copy of an encoded image for a report.

    Args:
        width: in pixels; a smaller image keeps its size, and none is more than twice as high as `width`.

    Returns:
        A WebP file.

    Raises:
        ItemError: as `decode`.
    """
    image = decode(data, name)
    image.thumbnail((width, 2 * width))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=75)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    # Pillow's own limit only warns at our sizes, through filters that are not safe between threads. It is read from
    # this name alone, so it is lifted for the reading of the header; `decode` checks the size before any pixel.
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
        # Pillow would clip at 255, which makes a page white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels are 32 bits of mode {image.mode}, whose white is not known")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.new("RGBA", above.size, "white")
        image.alpha_composite(above)
    return image.convert("RGB")
