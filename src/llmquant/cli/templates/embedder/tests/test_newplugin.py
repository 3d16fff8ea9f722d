"""What llmquant requires of every embedder, one line per check, and what only this embedder promises."""

import llmquant as lq
import pytest
from llmquant.testing import checks, tiny_embedder

from llmquant_newplugin.plugin import llmquant_register

(SPEC,) = llmquant_register()
test_contract = checks(SPEC, "newplugin({model})", refused=["newplugin({model}, max_tokens=1)"])


def test_the_end_of_a_long_text_is_cut_off(tmp_path, monkeypatch):
    """A text has the vector of its first tokens."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    embedder = lq.load_embedder(f"newplugin({tiny_embedder(tmp_path / 'model')}, max_tokens=8)", device="cpu")
    vectors = embedder.encode(["a bell a bell a bell a bell", "a bell a bell a bell a bell rings"]).values
    assert vectors[0] @ vectors[1] == pytest.approx(1)
