"""What llmquant requires of every evaluator, one line per check, and what only this evaluator promises."""

import llmquant as lq
from llmquant.testing import checks, tiny_causal_lm

from llmquant_newplugin.evaluator import NewPlugin
from llmquant_newplugin.plugin import NewPluginOptions, llmquant_register

(SPEC,) = llmquant_register()
test_contract = checks(SPEC, "newplugin", refused=["newplugin(text=())", "newplugin(word)"])


def test_a_text_has_the_same_score_alone(tmp_path):
    """The number of texts does not matter to each of them."""
    model = lq.load(tiny_causal_lm(tmp_path / "model"), device="cpu")
    scores = [
        next(iter(NewPlugin(NewPluginOptions(texts)).evaluate(model, _Context()))).samples[0].scores
        for texts in (("one text",), ("one text", "another text"))
    ]
    assert scores[0] == scores[1]


class _Context:
    documents = lq.Documents()

    @staticmethod
    def progress(done, total):
        """Show nothing."""
