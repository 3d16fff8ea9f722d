# %% [markdown]
# # GPTQ, AWQ and NF4
#
# NF4 rounds each weight to the nearest of 16 fixed values, and needs only the weights.
# GPTQ and AWQ also read some text, and choose the rounding that changes the outputs on this text the least.
# Is the calibration worth its time? This notebook quantizes one model in all three ways and compares them.
#
# **Calibration takes time: about 20 minutes on two CPU cores.**
# The quantized checkpoints are kept, so everything after the first run is fast.
#
# Install: `pip install "llmquant[gptq,notebook]"`

# %%
import json
from pathlib import Path

import llmquant as lq
from llmquant.testing import demo_data, demo_model

# %% [markdown]
# ## Two texts that have nothing in common
#
# A method that is calibrated on the text on which it is judged looks better than it is.
# These are stories of CoQA: 50 to calibrate on, and 50 others to measure on.

# %%
rows = [json.loads(line) for line in (demo_data(100) / "coqa.jsonl").read_text().splitlines()]
stories = [row["story"] for row in rows]
Path("calibrate.txt").write_text("\n\n".join(stories[:50]))
Path("measure.txt").write_text("\n\n".join(stories[50:]))
print(f"calibrate on: {stories[0][:80]}...\nmeasure on:   {stories[50][:80]}...")

# %% [markdown]
# ## Three methods with groups of 64 weights
#
# Each group of weights shares a scale. Groups of 128 are usual, but this model's layers have 576 inputs, which 128 does
# not divide, so all three methods get groups of 64.
# Real models are calibrated on 128 sequences of 2,048 tokens with GPTQ, and of 512 tokens with AWQ, which tries 20
# scales per layer and so reads its text 22 times. Here a few short sequences have to do.

# %%
quantizers = [
    "bf16_baseline",
    "bnb_4bit_nf4",
    "gptq(group_size=64, calibration=calibrate.txt, samples=8, sequence_length=256)",
    "awq(group_size=64, calibration=calibrate.txt, samples=4, sequence_length=128)",
]

# %% [markdown]
# ## Measure
#
# Perplexity is the measure that a few documents decide: each token counts.
# The text is cut into windows of 128 tokens, and each variant is compared with the baseline window by window.

# %%
found = lq.compare(
    demo_model(),
    quantizers,
    ["perplexity(measure.txt, window=128, stride=128, max_tokens=2560)", "memory(prompt_tokens=128, decode_tokens=4)"],
)
found

# %% [markdown]
# ## What to look at
#
# - **Perplexity**: `× bf16_baseline` is the loss, with its interval. Where two intervals do not overlap, the methods
#   differ.
# - **Weights**: the sizes differ although all three have 4 bits per weight, as scales and layers that stay in
#   16 bits count too. Compare methods of the same size.
#
# With so little text, GPTQ and AWQ need not be better than NF4; [Quantizers](../docs/quantizers.md) has a table with
# more text. This checkpoint was made from a 4-bit file (GGUF Q4_1), so its weights lie on a grid already. The ranking
# of methods on your model may be another one: put it in place of `demo_model()`.

# %%
frame = found.to_frame()
frame[frame.metric.isin(["perplexity", "weights_bytes"])][["variant", "metric", "value", "ratio", "verdict"]]

# %% [markdown]
# ## How long did quantizing take?
#
# `provenance` has how each run was made; a checkpoint is made once and serves all of its experiments.

# %%
checkpoints = {run.experiment.variant.quantizer.label: run.provenance["checkpoint"] for run in found.runs.values()}
for variant, checkpoint in checkpoints.items():
    if checkpoint:
        print(f"{variant}: {checkpoint['seconds']:.0f} s")
