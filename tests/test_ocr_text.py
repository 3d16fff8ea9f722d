"""Pages are read once, in the order in which a person reads them, and retrieved by their text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

pytest.importorskip("sentence_transformers")
pytest.importorskip("rapidocr_onnxruntime")

from llmquant.embedders.ocr_text import ocr
from llmquant.embedders.ocr_text.embedder import OcrText
from llmquant.embedders.ocr_text.options import OcrTextOptions
from llmquant.embedders.ocr_text.reading_order import Piece, in_reading_order
from llmquant.errors import OptionError
from llmquant.models.info import inspect_model
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from tiny_sentence_transformer import save_tiny_sentence_transformer

PAGES = ("barley ledger\nthirty sacks", "the river is brown")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return save_tiny_sentence_transformer(tmp_path_factory.mktemp("ocr") / "model")


def _page(text):
    image = Image.new("RGB", (420, 140), "white")
    ImageDraw.Draw(image).text((20, 20), text, fill="black", font=ImageFont.load_default(size=36))
    return image


def _open(folder, context, tmp_path, **options):
    settings = OcrTextOptions(str(folder), **options)
    info = inspect_model(ModelRequest(str(folder)), Cache(tmp_path / "inspected"))
    return OcrText(settings).open(folder, info, {"dtype": torch.float32}, context()), settings.info(info)


def test_a_page_is_embedded_as_its_text(text_model, context, tmp_path):
    """Pages read in several threads have the vectors of the texts that were drawn on them."""
    opened, info = _open(text_model, context, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(lambda text: opened.prepare(None, _page(text), "document"), PAGES))
    texts = [opened.prepare(text, None, "document") for text in PAGES]
    for page, text in zip(opened.embed(pages, "document"), opened.embed(texts, "document"), strict=True):
        np.testing.assert_allclose(page, text, atol=1e-5)
    assert (info.similarity, info.modalities) == ("maxsim", ("text", "image"))


def test_a_page_is_read_once(text_model, context, tmp_path, monkeypatch):
    """A page that was read before, by another embedder too, is taken from the cache."""
    first = _open(text_model, context, tmp_path)[0].prepare(None, _page(PAGES[0]), "document")
    monkeypatch.setattr(ocr, "RapidOCR", None)
    again = _open(text_model, context, tmp_path, chunks="mean")[0].prepare(None, _page(PAGES[0]), "document")
    assert again == first


def test_a_page_is_read_again_where_time_is_measured(text_model, context, tmp_path, monkeypatch):
    """The embedder without cached texts recognizes the page and prepares the same."""
    opened = _open(text_model, context, tmp_path)[0]
    first = opened.prepare(None, _page(PAGES[0]), "document")
    uncached = opened.uncached()
    assert uncached.prepare(None, _page(PAGES[0]), "document") == first
    monkeypatch.setattr(ocr, "RapidOCR", None)
    with pytest.raises(TypeError):
        opened.uncached().prepare(None, _page(PAGES[0]), "document")


def test_an_empty_page_has_a_vector(text_model, context, tmp_path):
    """A page without text is no error, and is like other pages without text."""
    opened, _ = _open(text_model, context, tmp_path)
    (vectors,) = opened.embed([opened.prepare(None, Image.new("RGB", (80, 60), "white"), "document")], "document")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_long_texts_are_cut_into_chunks_that_overlap(text_model, context, tmp_path):
    """Every word of a long text is in a chunk that the model reads whole; neighbours share about half."""
    opened, _ = _open(text_model, context, tmp_path, chunk_tokens=20)
    words = [f"ledger{number}" for number in range(60)]
    chunks = [part.inputs.split() for part in opened.prepare(" ".join(words), None, "document").inputs]
    assert list(dict.fromkeys(word for chunk in chunks for word in chunk)) == words
    lengths = [len(opened.module.tokenizer(" ".join(chunk))["input_ids"]) for chunk in chunks]
    assert max(lengths) <= 22
    assert all(set(one) & set(other) for one, other in pairwise(chunks))


def test_the_mean_of_the_chunks_is_one_unit_vector(text_model, context, tmp_path):
    """With ``mean`` an item has one vector: the mean of those it has with ``max``, at unit length."""
    text = "the ledger of the lighthouse and the weather in the mountain " * 5
    several, info = _open(text_model, context, tmp_path, chunk_tokens=20)
    one, mean_info = _open(text_model, context, tmp_path, chunk_tokens=20, chunks="mean")
    (chunks,) = several.embed([several.prepare(text, None, "document")], "document")
    (mean,) = one.embed([one.prepare(text, None, "document")], "document")
    expected = chunks.mean(0) / np.linalg.norm(chunks.mean(0))
    assert len(chunks) > 1
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    assert (info.similarity, mean_info.similarity) == ("maxsim", "cosine")


def test_a_batch_gives_what_single_items_give(text_model, context, tmp_path):
    """Items of one batch have the vectors they have alone, whatever their numbers of chunks."""
    opened, _ = _open(text_model, context, tmp_path, chunk_tokens=12)
    items = [opened.prepare(text, None, "document") for text in ("the river " * 30, "barley", "how many sacks " * 9)]
    for one, item in zip(opened.embed(items, "document"), items, strict=True):
        np.testing.assert_allclose(one, opened.embed([item], "document")[0], atol=1e-5)


def test_a_query_has_one_vector(text_model, context, tmp_path):
    """A query stays whole, so that a page scores as its best chunk does."""
    opened, _ = _open(text_model, context, tmp_path, chunk_tokens=8)
    (query,) = opened.embed([opened.prepare("why is the river brown " * 5, None, "query")], "query")
    assert query.shape == (1, 32)


def test_columns_are_read_one_after_the_other():
    """A heading over two columns comes first, then the left column, then the right one."""
    heading = Piece(10, 0, 390, 18, "heading")
    left = [Piece(10, 30 + 20 * row, 180, 46 + 20 * row, f"left{row}") for row in range(6)]
    right = [Piece(220, 30 + 20 * row, 390, 46 + 20 * row, f"right{row}") for row in range(6)]
    expected = ["heading", *(f"left{row}" for row in range(6)), *(f"right{row}" for row in range(6))]
    assert in_reading_order([*right, *left, heading]) == expected


def test_rows_of_a_table_are_read_across():
    """Short pieces beside each other are cells: a row is one line."""
    cells = [
        Piece(10 + 100 * column, 20 * row, 50 + 100 * column, 16 + 20 * row, f"{row}{column}")
        for row in range(6)
        for column in range(4)
    ]
    assert in_reading_order(cells[::-1]) == [" ".join(f"{row}{column}" for column in range(4)) for row in range(6)]


def test_words_that_were_joined_are_parted(tmp_path):
    """A small letter or a point before a capital is where the recognizer left a space out."""
    recognizer = ocr.Recognizer(Cache(tmp_path))
    page = Image.new("RGB", (8, 8))

    recognizer._recognize = lambda page: [[0, 0, 90, 10, "AdministrativeDuties.See(here)"]]
    assert recognizer.read(page) == ["Administrative Duties. See (here)"]


@pytest.mark.parametrize("size", [(595, 1), (1, 595), (20_000, 3), (100_000, 1), (3, 7), (4000, 300), (1, 1)])
def test_a_thin_page_gets_no_larger_than_it_must(size):
    """However thin a page is, what the recognizer gets has few pixels, and a shape that it does not enlarge."""
    compact = ocr._compact(Image.new("RGB", size))
    assert max(compact.size) <= min(2 * min(compact.size), 2000)
    assert min(compact.size) >= 32


@pytest.mark.parametrize("size", [(595, 842), (842, 595), (1600, 200), (32, 32), (5000, 3000)])
def test_an_ordinary_page_is_read_as_it_is(size):
    """A page of a common shape is not touched."""
    page = Image.new("RGB", size)
    assert ocr._compact(page) is page


def test_a_page_of_one_row_of_pixels_is_read_at_once(tmp_path):
    """It has no text, and costs what a small page costs: the recognizer sees less than a megapixel."""
    recognizer = ocr.Recognizer(Cache(tmp_path))
    assert recognizer.read(Image.new("RGB", (595, 1), "white")) == []
    assert recognizer.read(Image.new("RGB", (1, 595), "black")) == []


def test_a_line_on_a_strip_is_read(tmp_path):
    """A strip with one line of text, thinner than a page may be, still gives its text."""
    strip = Image.new("RGB", (900, 60), "white")
    ImageDraw.Draw(strip).text((20, 8), "thirty sacks of barley", fill="black", font=ImageFont.load_default(size=36))
    assert "sacks" in " ".join(ocr.Recognizer(Cache(tmp_path)).read(strip))


def test_wrong_options_are_refused():
    """Chunks of nothing, and chunks that never end, are refused."""
    with pytest.raises(OptionError, match="chunk_tokens"):
        OcrTextOptions("x", chunk_tokens=2)
    with pytest.raises(OptionError, match="overlap"):
        OcrTextOptions("x", overlap=1.0)
