# %% [markdown]
# # The same study on Modal
#
# A study that runs on this machine runs on rented GPUs without a change: with the same identities, so that results mix,
# and with its cost confirmed before anything starts.
# This notebook runs one study here and on Modal, and takes about 2 minutes.
#
# Install: `pip install "llmquant[local,modal,notebook]"`, then once `modal token new`.

# %%
import llmquant as lq
from llmquant.testing import demo_data, demo_model

# %% [markdown]
# ## A study
#
# What to compare, and not where.

# %%
stories = demo_data(50) / "stories.txt"
study = (
    demo_model(),
    ["bf16_baseline", "bnb_4bit_nf4"],
    [f"perplexity({stories}, window=128, stride=128, max_tokens=1280)"],
)

# %% [markdown]
# ## Here

# %%
here = lq.compare(*study)
here

# %% [markdown]
# ## What would it cost there?
#
# This model is small enough for a container without a GPU, and needs no secret with a token of the Hub.
# Without a budget nothing starts, and the error has the price:

# %%
container = 'gpu=none, cpus=2, memory_gib=4, secret=""'
try:
    lq.compare(*study, executor=f"modal({container})", store="results-modal")
except lq.errors.OptionError as error:
    print(error)

# %% [markdown]
# ## There
#
# The budget confirms the cost. The container gets the package versions of this machine, the local file of the model
# and the text. The runs come into another store, because stored runs would be reused.

# %%
there = lq.compare(*study, executor=f"modal({container}, budget=1)", store="results-modal")
there

# %% [markdown]
# ## The same runs
#
# Equal identities: had both gone into one store, the second study would have found everything done.

# %%
print("the same experiments:", here.runs.keys() == there.runs.keys())
for name, found in (("here", here), ("there", there)):
    print(name, [round(row.value, 3) for row in found.rows() if row.metric == "perplexity"])
print(f"paid: about ${sum(there.dollars.values()):.4f}")

# %% [markdown]
# ## Your model, on GPUs
#
# Only the names change. Quantizations run in parallel, each in a container of its own:
#
# ```python
# lq.compare(
#     "meta-llama/Llama-3.2-1B",
#     ["fp16_baseline", "bnb_8bit", "bnb_4bit_nf4", "gptq_4bit_g128", "awq_4bit_g128"],
#     ["lm_eval(coqa)", "memory", "latency", "throughput"],
#     executor="modal(gpu=A100, budget=20)",
# )
# lq.compare(
#     ["bigemma3-4b-embedding", "vidore/colqwen2.5-v0.2"],
#     ["bf16_baseline", "bnb_4bit_nf4"],
#     ["mteb(ViDoRe(v1))"],
#     limit=None,
#     executor="modal(gpu=L40S, budget=30)",
# )
# ```
#
# `lq.submit_study(lq.Study.of(*study), executor=...)` returns at once, and `lq.attach` fetches the results later, from
# any machine.
