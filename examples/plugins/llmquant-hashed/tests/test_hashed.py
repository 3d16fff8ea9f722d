"""What llmquant requires of every embedder, one line per check, and what only this embedder promises."""

import llmquant as lq
from llmquant.testing import checks

from llmquant_hashed.plugin import llmquant_register

(SPEC,) = llmquant_register()
test_contract = checks(SPEC, "hashed", refused=["hashed(checkpoint=./folder)", "hashed(width=1)"])


def test_a_text_is_near_to_texts_with_its_words(tmp_path, monkeypatch):
    """Also in another form of the word."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    texts = ["The farmer sold nine sacks of barley.", "A lighthouse keeper rang the bell.", "Who was selling barley?"]
    barley, bell, query = lq.load_embedder("hashed", device="cpu").encode(texts).values
    assert query @ barley > query @ bell + 0.1
