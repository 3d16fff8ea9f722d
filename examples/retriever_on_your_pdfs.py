# %% [markdown]
# # A quantized retriever on your own PDFs
#
# A retriever finds the page that answers a question.
# It can be made smaller in two places: the weights of the model that reads pages and questions, and the vectors that an
# index keeps of every page.
# How many pages does it find afterwards? This notebook measures both at once.
# It takes about 2 minutes on two CPU cores, most of it for reading the pages.
#
# Install: `pip install "llmquant[ocr,pdf,notebook]"`

# %%
import json
import shutil
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import llmquant as lq
from llmquant.testing import demo_data, demo_embedder

# %% [markdown]
# ## PDFs and questions
#
# You need a folder of PDFs, and a file of questions with the pages that answer them, such as
# `{"query": "How do I change the filter?", "relevant": ["manual.pdf#12"]}`.
# If you have none yet, the next cells make some: 24 stories of CoQA, one per page, with the first questions on each.

# %%
rows = [json.loads(line) for line in (demo_data(24) / "coqa.jsonl").read_text().splitlines()]


def page(text: str) -> Image.Image:
    """Print a text on a page, as a scanner would give it."""
    image, lines = Image.new("L", (1000, 600), "white"), textwrap.wrap(text, 85)
    ImageDraw.Draw(image).multiline_text((60, 60), "\n".join(lines), "black", ImageFont.load_default(20), spacing=8)
    return image


pages = [page(row["story"]) for row in rows]
Path("pdfs").mkdir(exist_ok=True)
pages[0].save("pdfs/stories.pdf", save_all=True, append_images=pages[1:], resolution=150)
pages[0].resize((500, 300))

# %%
with Path("queries.jsonl").open("w") as file:
    for number, row in enumerate(rows, start=1):
        question = " ".join(row["questions"]["input_text"][:2])
        file.write(json.dumps({"query": question, "relevant": [f"stories.pdf#{number}"]}) + "\n")

print(Path("queries.jsonl").read_text()[:400])

# %% [markdown]
# ## Compare weights and vectors in one grid
#
# `ocr_text` reads each page with a text recognizer and embeds its text with all-MiniLM-L6-v2. Models that look at the
# page itself, such as `bigemma3` or `vidore/colqwen2.5-v0.2`, go in the same place, and need a GPU.
#
# Weights in bfloat16 or NF4, vectors as float32, as int8 (a quarter of the bytes) or as single bits (one in 32):

# %%
shutil.copytree(demo_embedder(), "minilm", dirs_exist_ok=True)
found = lq.compare(
    "ocr_text(./minilm)",
    ["bf16_baseline", "bnb_4bit_nf4"],
    ["retrieval(pdfs, queries=queries.jsonl)"],
    vectors={"codecs": ["float32", "int8", "binary"]},
    limit=None,
)
found

# %% [markdown]
# ## What to look at
#
# - **NDCG@5** is 100 if the right page always comes first; second place counts 63, and beyond the fifth place nothing.
# - **Bytes per page** is what the index keeps. int8 usually loses nothing, and single bits lose a little: with 24
#   questions, a difference of a few points stays *undecided*.
# - Each page is read and encoded once per model; the codecs share the vectors, so this grid costs little more than one
#   line of it.
#
# ## Which questions changed?
#
# A single question moves by a lot, a mean over questions by little. `reference` is the page that answers the question.

# %%
changed = found.samples_frame("bnb_4bit_nf4 · float32").query("metric == 'ndcg_at_5' and change != 0")
changed[["reference", "baseline_score", "score", "change"]]

# %% [markdown]
# The report shows the worst queries with pictures of the pages that were found instead:

# %%
found.save_html("retriever.html")

# %% [markdown]
# ## Use it
#
# The quantized model in this process: which page is closest to a question?

# %%
retriever = lq.load_embedder("ocr_text(./minilm)", "bnb_4bit_nf4")
index = retriever.encode([row["story"] for row in rows])
question = rows[0]["questions"]["input_text"][0]
vector = retriever.encode([question], role="query").item(0)
scores = [(index.item(number) @ vector.T).max() for number in range(len(index))]
best = max(range(len(index)), key=scores.__getitem__)
print(f"{question}\npage {best + 1} ({scores[best]:.2f}): {rows[best]['story'][:300]}")
