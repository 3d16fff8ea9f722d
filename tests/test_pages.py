"""The set of handbook pages in ``benchmarks/pages``: its queries fit its pages, and its pages can be drawn."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "pages"
sys.path.insert(0, str(FOLDER))  # The scripts there import each other by name.
try:
    import handbook
    import render
finally:
    sys.path.remove(str(FOLDER))

PAGES = handbook.read_pages()
QUERIES = [json.loads(line) for line in (FOLDER / "queries.jsonl").read_text(encoding="utf-8").splitlines()]


def test_pages_have_names_of_their_own():
    """No page is written over another's image."""
    assert len({page.file for page in PAGES}) == len(PAGES) >= 72


def test_every_relevant_page_exists():
    """A query names only pages that the renderer draws, and grades them 1 or 2."""
    names = {page.file for page in PAGES}
    for query in QUERIES:
        assert query["relevant"].keys() <= names, query["id"]
        assert 2 in query["relevant"].values(), query["id"]
        assert set(query["relevant"].values()) <= {1, 2}, query["id"]


def test_queries_are_told_apart():
    """Ids and queries are unique, and none is empty."""
    texts = [query["query"].strip() for query in QUERIES]
    assert all(texts)
    assert len(set(texts)) == len({query["id"] for query in QUERIES}) == len(QUERIES) >= 60


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    """An image's hash, and so its place in the embedding cache, is the same on the next day."""
    page = next(page for page in PAGES if page.file == "sm60-lubrication.png")
    (tmp_path / "again").mkdir()
    assert render.save(page, tmp_path).read_bytes() == render.save(page, tmp_path / "again").read_bytes()


def test_all_pages_are_written(tmp_path, monkeypatch):
    """The command writes an image for each page of the content."""
    monkeypatch.setattr(sys, "argv", ["render.py", str(tmp_path), "--dpi", "30"])
    monkeypatch.setattr(render, "read_pages", lambda: PAGES[::20])
    render.main()
    assert {path.name for path in tmp_path.iterdir()} == {page.file for page in PAGES[::20]}


def test_longest_page_fits():
    """The page with the most text is drawn without running into its footer."""
    image = render.render(max(PAGES, key=lambda page: len(page.text)), dpi=72)
    assert image.size == (595, 842)


def test_page_that_is_too_long_is_refused():
    """Text below the foot of the page is an error rather than lost."""
    page = dataclasses.replace(PAGES[0], blocks=PAGES[0].blocks * 4)
    with pytest.raises(render.PageFullError, match="longer than the page"):
        render.render(page, dpi=50)
