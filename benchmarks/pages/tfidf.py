"""The reference for page retrieval: TF-IDF over the authored text, as if OCR made no mistake.

    python benchmarks/pages/tfidf.py

Prints NDCG@5 over the queries, computed by pytrec_eval as mteb does. Needs scikit-learn and pytrec_eval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import pytrec_eval
from handbook import read_pages
from sklearn.feature_extraction.text import TfidfVectorizer

QUERIES = Path(__file__).with_name("queries.jsonl")


def scores(pages: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return the cosine of each query with each page, by query and page.

    Args:
        pages: the text of each.
        queries: the words of each.
    """
    # Not tuned: words and pairs of words, English stop words left out, logarithmic counts.
    vectorizer = TfidfVectorizer(stop_words="english", ngram_range=(1, 2), sublinear_tf=True)
    documents = vectorizer.fit_transform(pages.values())
    cosines = (vectorizer.transform(queries.values()) @ documents.T).toarray()
    return {query: dict(zip(pages, map(float, row), strict=True)) for query, row in zip(queries, cosines, strict=True)}


def ndcg_at_5(found: dict[str, dict[str, float]], relevant: dict[str, dict[str, int]]) -> float:
    """Return the mean over the queries, 0 to 1."""
    judged = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.5"}).evaluate(found)
    return mean(row["ndcg_cut_5"] for row in judged.values())


def main() -> None:
    rows = [json.loads(line) for line in QUERIES.read_text(encoding="utf-8").splitlines()]
    pages = {page.file: page.text for page in read_pages()}
    found = scores(pages, {row["id"]: row["query"] for row in rows})
    result = ndcg_at_5(found, {row["id"]: row["relevant"] for row in rows})
    print(f"TF-IDF: NDCG@5 {result:.4f} over {len(rows)} queries and {len(pages)} pages")


if __name__ == "__main__":
    main()
