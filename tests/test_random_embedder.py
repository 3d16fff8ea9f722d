"""Random vectors are equal for equal items, independent otherwise, and retrieve at chance."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llmquant.embedders.chance.embedder import Chance
from llmquant.embedders.chance.options import ChanceOptions
from llmquant.errors import OptionError


def _vectors(context, texts, **options):
    opened = Chance(ChanceOptions(**options)).open(None, None, {}, context())
    return np.stack(opened.embed([opened.prepare(text, None, "query") for text in texts], "query"))


def test_equal_items_have_equal_vectors(context):
    """A text has the same unit vector every time, and another with another seed."""
    first, again = _vectors(context, ["a", "b"]), _vectors(context, ["b", "a"])
    np.testing.assert_array_equal(first, again[::-1])
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    assert first.dtype == np.float32
    assert abs(first[0] @ _vectors(context, ["a"], seed=1)[0]) < 0.6


def test_an_image_and_its_text_are_told_apart(context):
    """Images of other pixels or another shape, and items with both, have vectors of their own."""
    opened = Chance(ChanceOptions()).open(None, None, {}, context())
    black, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    items = [(None, black), (None, tall), ("a", black), ("a", None), (None, Image.new("RGB", (4, 2), "red"))]
    vectors = np.stack(opened.embed([opened.prepare(*item, "document") for item in items], "document"))
    assert abs(vectors @ vectors.T - np.eye(5)).max() < 0.6


def test_it_retrieves_at_chance(context):
    """Over 500 queries the right one of 100 documents is among the first five as often as luck has it."""
    documents = _vectors(context, [f"document {i}" for i in range(100)])
    queries = _vectors(context, [f"query {i}" for i in range(500)])
    scores = queries @ documents.T
    ranks = (scores > scores[np.arange(500), np.arange(500) % 100, None]).sum(1)
    # 25 hits are expected; the binomial's standard deviation is 4.9.
    assert 5 <= (ranks < 5).sum() <= 45


def test_it_has_no_weights(context):
    """Its module has no parameters, and a checkpoint is refused."""
    assert not list(Chance(ChanceOptions()).open(None, None, {}, context()).module.parameters())
    with pytest.raises(OptionError, match="no checkpoint"):
        ChanceOptions("./model")
