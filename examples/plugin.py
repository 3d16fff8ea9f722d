# %% [markdown]
# # A plugin in a notebook
#
# You have an idea for a quantization. How good is it, compared with NF4?
# This notebook writes a quantizer and an evaluator of a few lines each, runs both in its own process, and then compares
# the quantizer with NF4, all without a package.
# It takes about 2 minutes on two CPU cores.
#
# Install: `pip install "llmquant[local,notebook]"`

# %%
from pathlib import Path

import llmquant as lq
from llmquant.testing import demo_data, demo_model

# %% [markdown]
# ## A quantizer
#
# `replace` gets one linear layer after the other and rounds its weights; here to the nearest multiple of one step per
# row. The code goes into a file, because the processes that run a comparison import it from there.

# %%
quantizer = """
from dataclasses import dataclass
import llmquant as lq

@dataclass(frozen=True)
class Options(lq.QuantizerOptions):
    bits: int = 4

class RoundToNearest(lq.ReplacesLinear):
    def replace(self, layer):
        step = layer.weight.abs().amax(1, keepdim=True) / (2 ** (self.options.bits - 1) - 1)
        layer.weight.copy_((layer.weight / step).round() * step)
        return layer
"""
Path("my_rtn.py").write_text(quantizer)
lq.register(lq.PluginSpec("quantizer", "my_rtn", "Round to nearest.", "my_rtn:Options", "my_rtn:RoundToNearest"))

# %% [markdown]
# ## An evaluator
#
# It yields one score per document; the mean, its error and the paired comparison follow from them.

# %%
evaluator = """
from dataclasses import dataclass
import llmquant as lq

@dataclass(frozen=True)
class Options(lq.EvaluatorOptions):
    text: tuple[str, ...] = ("Water boils at a lower temperature on a mountain.", "Why is the river brown?")

class Loss(lq.Evaluator):
    def evaluate(self, subject, ctx):
        ids = {t: subject.tokenizer(t, return_tensors="pt").input_ids.to(subject.device) for t in self.options.text}
        samples = [lq.Sample(t, t, {"loss": subject.module(i, labels=i).loss.item()}) for t, i in ids.items()]
        yield lq.Result.from_samples("texts", samples, "loss", higher_is_better=False)
"""
Path("my_loss.py").write_text(evaluator)
lq.register(lq.PluginSpec("evaluator", "my_loss", "Loss on my texts.", "my_loss:Options", "my_loss:Loss"))

# %% [markdown]
# ## Try them in this process
#
# `lq.load` and `lq.evaluate` run here, where a debugger can stop inside `replace` and `evaluate`.

# %%
model = lq.load(demo_model(), "my_rtn(bits=3)")
model

# %%
(result,) = lq.evaluate(model, "my_loss")
result.measurements[0].value

# %% [markdown]
# ## Compare with NF4
#
# By name, as if they were built in: with a baseline, intervals and verdicts.

# %%
stories = demo_data(50) / "stories.txt"
found = lq.compare(
    demo_model(),
    ["bf16_baseline", "bnb_4bit_nf4", "my_rtn", "my_rtn(bits=8)"],
    ["my_loss", f"perplexity({stories}, window=128, stride=128, max_tokens=2560)"],
)
found

# %% [markdown]
# ## What to look at
#
# One step per row is coarse: at 4 bits it loses far more than NF4, whose steps are shared by 64 weights only.
# With 8 bits the loss is gone. Two texts are too few for `my_loss` to decide anything; 20 windows of text do.
#
# [Write a plugin](../docs/plugins.md) turns these two files into a package that others can install.
