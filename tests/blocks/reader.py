"""What a reader of the documentation has in the folder where the commands run, by the names that the pages use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from hub_content import SENTENCES, STORIES, WORDS, page, text

from classic_checkpoints import write_awq, write_gptq
from llmquant.storage.cache import Cache
from lm_eval_output import CHOICE_ROWS, noisy, write_output, write_rows
from made_up import small_study, store_of
from subjects import load_subject
from test_importing_values import DIVERGENCE, PERPLEXITY

ROOT = Path(__file__).parents[2]
# These pages are about a study that the reader has run before.
_OF_AN_EARLIER_STUDY = ("report.md", "store-and-results.md")


def write_folder(folder: Path, of: Path, *, causal: Path, minilm: Path, gemma: Path, store: Path) -> None:
    """Write everything that the page `of` names without making it.

    Args:
        causal: a tiny language model.
        minilm: a tiny model of sentence-transformers.
        gemma: a tiny Gemma 3.
        store: the store, which all pages share, so that nothing is measured twice.
    """
    for name in ("my-checkpoint", "other", "smaller-checkpoint", "large", "llama"):
        (folder / name).symlink_to(causal)
    _write_thinker(folder / "qwen", causal)
    (folder / "minilm").symlink_to(minilm)
    (folder / "mine").symlink_to(gemma)
    write_gptq(causal, folder / "llama-gptq")
    write_awq(causal, folder / "their-awq")
    _write_benchmark(folder / "benchmarks" / "pages")
    (folder / "study.toml").write_text(_block(ROOT / "docs" / "cli.md", "toml"))
    if of.name in _OF_AN_EARLIER_STUDY:
        store_of(small_study(), folder / "results")
    else:
        (folder / "results").symlink_to(store)
    _write_texts(folder)
    if "out/bf16" in of.read_text():
        _write_lm_eval(folder, causal)
    if of.name == "plugins.md":
        _write_packages(folder, of)


def _write_thinker(folder: Path, causal: Path) -> None:
    """Write a model that reads more tokens, and whose chat template can start the answer with thoughts."""
    shutil.copytree(causal, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    with (folder / "chat_template.jinja").open("a") as template:
        template.write("{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}")
        template.write("<think></think>{% endif %}")


def _block(page: Path, kind: str) -> str:
    return page.read_text().split(f"```{kind}\n")[1].partition("```")[0]


def _write_texts(folder: Path) -> None:
    (folder / "text.txt").write_text(text(1000))
    (folder / "calib.txt").write_text(text(30000))
    (folder / "f16.txt").write_text(PERPLEXITY)
    (folder / "q4_k_m.txt").write_text(DIVERGENCE)
    write_rows(folder / "validation.jsonl", STORIES)
    (folder / "pages").mkdir()
    for n, word in enumerate(WORDS):
        (folder / "pages" / f"{word}.png").write_bytes(page(n))
    asked = [(word, f"What about the {word}?") for word in WORDS]
    write_rows(folder / "queries.jsonl", [{"query": query, "relevant": [f"{word}.png"]} for word, query in asked])
    beir = folder / "scifact"
    (beir / "qrels").mkdir(parents=True)
    corpus = [{"_id": word, "title": word, "text": sentence} for word, sentence in zip(WORDS, SENTENCES, strict=True)]
    write_rows(beir / "corpus.jsonl", corpus)
    write_rows(beir / "queries.jsonl", [{"_id": f"about-{word}", "text": query} for word, query in asked])
    judged = "".join(f"about-{word}\t{word}\t1\n" for word in WORDS)
    (beir / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


def _write_benchmark(folder: Path, handbook: str = "bs45") -> None:
    """Copy the benchmark on pages with one of its six handbooks: OCR reads a page in two seconds."""
    ours = ROOT / "benchmarks" / "pages"
    shutil.copytree(ours, folder, ignore=lambda _, names: {n for n in names if ".toml" in n and handbook not in n})
    rows = [json.loads(line) for line in (ours / "queries.jsonl").read_text().splitlines()]
    own = [row for row in rows if all(page.startswith(handbook) for page in row["relevant"])]
    write_rows(folder / "queries.jsonl", own)


def _write_lm_eval(folder: Path, causal: Path) -> None:
    """Let lm-eval write its files of a model, and of the same model with noise."""
    made = folder / "lm-eval"
    made.mkdir()
    subject = load_subject(causal, Cache(made / "cache"))
    rows = write_rows(made / "rows.jsonl", CHOICE_ROWS)
    words = write_rows(made / "words.jsonl", [{"question": row["question"], "answer": "e"} for row in CHOICE_ROWS[:6]])
    (folder / "out").mkdir()
    for name, noise in (("bf16", 0.0), ("nf4", 0.5)):
        noisy(subject.module, noise)
        write_output(made / name, subject, rows, words).rename(folder / "out" / name)


def _write_packages(folder: Path, tutorial: Path) -> None:
    """Write the package and the files whose text the tutorial shows."""
    shutil.copytree(ROOT / "tests" / "plugins" / "llmquant-example", folder / "llmquant-example")
    untitled = re.findall(r"^```python\n(.*?)^```$", tutorial.read_text(), re.MULTILINE | re.DOTALL)
    for name, written in zip(("my_rtn.py", "my_loss.py"), untitled, strict=False):
        (folder / name).write_text(written)
    (folder / "sinq.diff").write_text(_block(tutorial, 'diff title="sinq.diff"'))
