# %% [markdown]
# # Is the loss real?
#
# The quantized model scores two points less than the original. Is that a loss, or luck?
# This notebook shows four ways to know: pair the answers, look at those that changed, measure something that decides
# sooner, and ask how many questions would decide.
# It takes about 2 minutes on two CPU cores.
#
# Install: `pip install "llmquant[local,notebook]"`

# %%
import math

import llmquant as lq
from llmquant.testing import demo_data, demo_model

# %% [markdown]
# ## Two measures of one quantization
#
# CoQA asks 24 questions. Perplexity and fidelity read the 24 stories, where every word counts.

# %%
data = demo_data(24)
windows = "window=128, stride=128, max_tokens=2560"
found = lq.compare(
    demo_model(),
    ["bf16_baseline", "bnb_4bit_nf4"],
    [
        {"name": "lm_eval", "tasks": ["coqa"], "data": str(data / "coqa.jsonl"), "gen_kwargs": {"max_gen_toks": 16}},
        f"perplexity({data / 'stories.txt'}, {windows})",
        f"fidelity({data / 'stories.txt'}, {windows})",
    ],
)
rows = {row.metric: row for row in found.rows() if row.headline and row.variant == "bnb_4bit_nf4"}

# %% [markdown]
# ## 1. Pair the answers
#
# Both variants answer the same questions, so most of the chance is the same on both sides and cancels out.
# The paired standard error is smaller than the one that two unrelated runs would have. Even so, 24 questions leave a
# wide interval around the difference: it may be a loss, it may be luck.

# %%
f1 = rows["f1"]
baseline = next(row for row in found.rows() if row.metric == "f1" and row.is_baseline)
unpaired = math.hypot(f1.stderr, baseline.stderr)
print(f"F1: {100 * baseline.value:.1f} before, {100 * f1.value:.1f} after")
print(f"standard error of the difference, unpaired: {100 * unpaired:.1f} points")
print(f"standard error of the difference, paired: {100 * f1.difference_stderr:.1f} points")
print(f"95% interval: [{100 * f1.difference_low:.1f}, {100 * f1.difference_high:.1f}] points: {f1.verdict}")

# %% [markdown]
# ## 2. Look at what changed
#
# The difference comes from the few documents whose score changed. Read them before you trust a number: some are better,
# some worse, and some only end elsewhere.

# %%
(change,) = (change for change in found.changes() if change.task == "coqa")
print(f"{change.answers.count} of {change.answers.n} answers changed")
found.samples_frame(task="coqa").query("metric == 'f1' and change != 0")[
    ["reference", "baseline_answer", "answer", "baseline_score", "score"]
].sort_values("score")

# %% [markdown]
# ## 3. Measure something that decides sooner
#
# Perplexity changes by a steady amount in every window of the text, so 20 windows decide what 24 questions cannot.
# `real` says whether the interval excludes zero, and the verdict whether the loss is above the margin of 2%.

# %%
perplexity = rows["perplexity"]
print(f"perplexity x {perplexity.ratio:.3f} [{perplexity.ratio_low:.3f}, {perplexity.ratio_high:.3f}]")
print(f"real: {perplexity.real or 'not shown'}; at a margin of 2%: {perplexity.verdict}")

# %% [markdown]
# Fidelity asks the most sensitive question: how far are the probabilities of the next word from the baseline's?
# It finds a change long before scores show one.

# %%
print(f"mean KL divergence: {rows['kl_divergence'].value:.4f} nats")
print(f"same first choice: {100 * rows['top1_agreement'].value:.1f}% of the tokens")

# %% [markdown]
# ## 4. How many questions would decide?
#
# An undecided verdict comes with the number of documents that would decide it, if the difference stays as it is.

# %%
for name in ("f1", "em"):
    print(f"{name}: {rows[name].verdict}, about {round(rows[name].documents_needed, -2):,} documents would decide")

# %% [markdown]
# Stored results can be judged at another margin without running anything:

# %%
for margin in (2, 10, 20):
    judged = found.at_margin(margin)
    verdict = next(row.verdict for row in judged.rows() if row.metric == "f1" and not row.is_baseline)
    print(f"at a margin of {margin} points: {verdict}")

# %% [markdown]
# ## The whole answer

# %%
found

# %% [markdown]
# With more questions at hand, `lq.compare(..., limit=None, until_sure=True)` stops as soon as every verdict is sure.
#
# This checkpoint was made from a 4-bit file (GGUF Q4_1), so its losses are not those of the original SmolLM2.
