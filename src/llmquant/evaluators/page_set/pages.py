"""The pages of a local retrieval set and their names: images, texts and PDFs in a folder, or one PDF."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmquant.errors import MissingDependencyError, OptionError, RequestError, collecting, shorten
from llmquant.storage.text_files import read_text
from llmquant.study.folders import composed, file_sha256, list_files

if TYPE_CHECKING:
    from llmquant.storage.cache import Cache

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".jp2", ".avif", ".ppm")
_TIFF = (".tif", ".tiff")
# Pages that would be missing among the documents if these files were ignored like a README.
_UNREAD = (".heic", ".heif", ".jxl", ".svg", ".eps", ".ps", ".jfif", ".jpe", ".pgm", ".pbm", ".pnm", ".j2k", ".apng")
_UNREAD_TEXTS = (".djvu", ".xps", ".epub", ".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".odp")
# The limit of the embedding loop, reported before a page is rendered.
_MAX_PIXELS = 100_000_000
_INSTALL = 'pip install "llmquant[pdf]"'
_FORMAT = 2  # version of the rendered pages; since 2 with the content of form fields


@dataclass(frozen=True)
class Page:
    """A page, or a text file.

    Attributes:
        id: path in the folder, for a PDF with the page number from 1: ``scans/a.png``, ``manual.pdf#3``.
        file: the page's file, or its PDF.
        number: page number in a PDF, from 1.
    """

    id: str
    file: Path
    number: int | None = None

    @property
    def kind(self) -> Literal["text", "image"]:
        """Return whether the page is a text or an image."""
        return "text" if self.file.suffix.lower() == ".txt" else "image"


@dataclass(frozen=True)
class PageSet:
    """All pages of a set.

    Attributes:
        others: files in the folder that are not pages.
    """

    pages: tuple[Page, ...]
    others: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["text", "image"]:
        """Return whether the set holds texts or images."""
        return self.pages[0].kind

    def names(self) -> dict[str, str]:
        """Return page ids by all accepted names.

        The names of a page are its id, its file's name if unique, and its page number in a set of one PDF.
        """
        found = {page.id: page.id for page in self.pages}
        short: dict[str, list[str]] = {}
        for page in self.pages:
            short.setdefault(Path(page.id).name, []).append(page.id)
        found |= {name: ids[0] for name, ids in short.items() if len(ids) == 1}
        if len({page.file for page in self.pages}) == 1 and self.pages[0].number is not None:
            found |= {str(page.number): page.id for page in self.pages}
        return found


def list_pages(path: Path, name: str, dpi: int) -> tuple[PageSet, list[RequestError]]:
    """List the pages of a folder or a PDF, and their faults, at most 21, without decoding images.

    Args:
        name: name of the PDF, if `path` is a PDF.
        dpi: resolution at which PDFs will be rendered.
    """
    errors: list[RequestError] = []
    files = list_files(path) if path.is_dir() else {name: path}
    pages: list[Page] = []
    others = []
    for label, file in files.items():
        suffix = Path(label).suffix.lower()
        if suffix in (*_UNREAD, *_UNREAD_TEXTS):
            errors.append(OptionError(f"{label}: {suffix} files cannot be read", hint="Save it as PNG, JPEG or PDF."))
        elif suffix not in (*IMAGES, ".txt", ".pdf"):
            others.append(label)
        elif file.stat().st_size == 0:
            errors.append(OptionError(f"{label} is empty: 0 bytes"))
        else:
            with collecting(errors):
                pages += _pdf_pages(label, file, dpi) if suffix == ".pdf" else [_page(label, file)]
    if not pages and not errors:
        hint = f"Pages are {', '.join(IMAGES)}, .txt and .pdf files."
        if "corpus.jsonl" in files:
            hint = f"For a BEIR folder, write beir({name})."
        errors.append(OptionError(f"{name} has no pages", hint=hint))
    if len({page.kind for page in pages}) > 1:
        texts = [page.id for page in pages if page.kind == "text"]
        errors.append(
            OptionError(f"{name} holds texts ({texts[0]}, ...) and page images", hint="Put them into two sets.")
        )
    shorten(errors, name)
    return PageSet(tuple(pages), tuple(others)), errors


def page_files(pages: Sequence[Page], dpi: int, cache: Cache) -> dict[str, Path]:
    """Return the file of each page by its id; pages of PDFs are rendered once and kept in the cache.

    Raises:
        OptionError: if a PDF cannot be read.
        MissingDependencyError: if a PDF is present but pypdfium2 is not installed.
    """
    rendered = {
        file: _render(file, dpi, cache) for file in dict.fromkeys(p.file for p in pages if p.number is not None)
    }
    return {
        page.id: page.file if page.number is None else rendered[page.file] / _image_name(page.number) for page in pages
    }


def _page(label: str, file: Path) -> Page:
    page = Page(label, file)
    if page.kind == "text" and not read_text(file, label).strip():
        raise OptionError(f"{label} holds no text")
    if file.suffix.lower() in _TIFF:
        try:
            from llmquant.retrieval.images import tiff_pages
        except ImportError as error:
            raise MissingDependencyError(
                f"{label} is a TIFF, but pillow is not installed", hint="Run: pip install pillow"
            ) from error
        if (count := tiff_pages(file.read_bytes())) > 1:
            hint = "Save it as a PDF, or each page as an image of its own."
            raise OptionError(f"{label} holds {count} pages, and only the first would be read", hint=hint)
    return page


def _pdf_pages(label: str, file: Path, dpi: int) -> Iterator[Page]:
    with _opened(file, label) as pdf:
        for number in range(1, len(pdf) + 1):
            width, height = (side * dpi / 72 for side in pdf.get_page_size(number - 1))
            if width * height > _MAX_PIXELS:
                raise OptionError(
                    f"{label}#{number} has {width * height / 1e6:.0f} megapixels at {dpi} dots per inch",
                    hint="Use a smaller dpi.",
                )
            yield Page(f"{label}#{number}", file, number)


def _render(file: Path, dpi: int, cache: Cache) -> Path:
    digest = file_sha256(file)

    def make(folder: Path) -> None:
        with _opened(file, file.name) as pdf:
            pdf.init_forms()  # without it, the values of a filled-in form are not drawn
            for number in range(1, len(pdf) + 1):
                image = pdf[number - 1].render(scale=dpi / 72).to_pil()
                # Level 1 takes a third of the default level's time.
                image.save(folder / _image_name(number), compress_level=1)

    return cache.get("pages", {"pdf": digest, "dpi": dpi, "format": _FORMAT}, make, name=file.name)


def _image_name(number: int) -> str:
    return f"{number:05}.png"


@contextlib.contextmanager
def _opened(file: Path, label: str) -> Iterator[Any]:  # Any: pypdfium2's document
    try:
        import pypdfium2
    except ImportError as error:
        raise MissingDependencyError(
            f"{label} is a PDF, but pypdfium2 is not installed", hint=f"Run: {_INSTALL}"
        ) from error
    try:
        pdf = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        raise OptionError(f"{label} cannot be opened as a PDF: {error}") from error
    try:
        yield pdf
    finally:
        pdf.close()


def resolve(name: str, names: Mapping[str, str]) -> str | None:
    """Return the id of the page that a query names `name`; ``None`` if no page has this name."""
    name = composed(name)
    return names.get(name) or names.get(name.removeprefix("./"))
