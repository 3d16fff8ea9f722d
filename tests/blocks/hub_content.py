"""What the stand-in of the Hub serves: tiny models and small data sets, by the names that the pages use."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

from lm_eval_output import CHOICE_ROWS, write_rows
from tiny_clip import write_clip
from tiny_gemma3 import write_gemma3
from tiny_sentence_transformer import save_tiny_sentence_transformer

SENTENCES = (
    "Mina kept a blue kite in the shed.",
    "The ferry left at nine with forty goats.",
    "Ada baked two loaves and gave one to the postman.",
    "The ledger of the mill lists nine sacks of barley.",
    "A lighthouse keeper counted the ships before dawn.",
    "Water boils at a lower temperature on a mountain.",
)
WORDS = ("kite", "ferry", "loaves", "ledger", "ships", "water")
VIDORE_V1 = (
    *("arxivqa_test_subsampled", "docvqa_test_subsampled", "infovqa_test_subsampled", "tabfquad_test_subsampled"),
    *("tatdqa_test", "shiftproject_test", "syntheticDocQA_artificial_intelligence_test"),
    *("syntheticDocQA_energy_test", "syntheticDocQA_government_reports_test"),
    "syntheticDocQA_healthcare_industry_test",
)
VIDORE_V2 = ("esg_reports_v2", "economics_reports_v2", "biomedical_lectures_v2", "esg_reports_human_labeled_v2")


def write_repos(room: Path, causal: Path) -> dict[str, Path]:
    """Write all repositories into `room`; `causal` is a tiny language model, which has many names."""
    gemma = write_gemma3(room / "gemma", hidden_size=2560)
    minilm = save_tiny_sentence_transformer(room / "minilm", dense=384)
    v1, v2 = _pages(room / "v1"), _pages(room / "v2", languages=("english", "french", "german", "spanish"))
    models = dict.fromkeys(
        ("meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M", "org/model", "org/model-nf4", "MODEL"), causal
    )
    models |= dict.fromkeys(("google/gemma-3-4b-it", "Cognitive-Lab/NetraEmbed"), gemma)
    models["sentence-transformers/all-MiniLM-L6-v2"] = minilm
    models["google/siglip-so400m-patch14-384"] = write_clip(room / "siglip", "siglip")
    models["vidore/colqwen2.5-v0.2"] = _adapter(room / "adapter", "vidore/colqwen2.5-base")
    models["vidore/colqwen2.5-base"] = _of_type(room / "colqwen", "qwen2_5_vl", causal)
    data = {
        "EleutherAI/coqa": _data_set(room / "coqa", {"default": dict.fromkeys(("train", "validation"), STORIES)}),
        "allenai/ai2_arc": _data_set(
            room / "arc", {"ARC-Easy": dict.fromkeys(("train", "validation", "test"), CHOICE_ROWS)}
        ),
        "openai/gsm8k": _data_set(room / "gsm8k", {"main": {"train": SUMS, "test": SUMS[:2]}}),
        "Salesforce/wikitext": _data_set(
            room / "wikitext",
            {"wikitext-2-raw-v1": dict.fromkeys(("train", "validation", "test"), [{"text": text(40)}] * 100)},
        ),
        "allenai/c4": _data_set(room / "c4", {"en": {"train": [{"text": text(500)}] * 200}}),
        **dict.fromkeys((f"mteb/{name}_beir" for name in VIDORE_V1), v1),
        **dict.fromkeys((f"vidore/{name}" for name in VIDORE_V2), v2),
    }
    return models | {f"datasets/{name}": folder for name, folder in data.items()}


def write_causal(folder: Path) -> Path:
    """Write the tiny language model with one layer, as the pages ask for many passes, of a width that groups divide."""
    from safetensors.numpy import load_file, save_file

    from llmquant.testing import tiny_causal_lm

    tiny_causal_lm(folder, width=256)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def _of_type(folder: Path, model_type: str, weights: Path) -> Path:
    """Write what a plan reads of a model that cannot be loaded here: its type, and the headers of some weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").symlink_to(weights / "model.safetensors")
    return folder


def _adapter(folder: Path, base: str) -> Path:
    """Write a PEFT adapter of `base` that changes nothing."""
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    save_file({}, folder / "adapter_model.safetensors")
    return folder


def text(sentences: int) -> str:
    """Return so many sentences, over and over the same."""
    return " ".join(islice(cycle(SENTENCES), sentences))


STORIES = [
    {
        "id": f"story{n}",
        "source": "mctest",
        "story": " ".join((SENTENCES[n], SENTENCES[(n + 1) % 6])),
        "questions": {"input_text": ["Is it a story?", f"What about the {WORDS[n]}?"], "turn_id": [1, 2]},
        "answers": {"input_text": ["yes", WORDS[n]], "turn_id": [1, 2]},
        "additional_answers": {"0": {"input_text": ["it is", f"the {WORDS[n]}"], "turn_id": [1, 2]}},
    }
    for n in range(6)
]
SUMS = [
    {"question": f"Mina has {n} kites and gets {n + 1} more. How many?", "answer": f"{n} + {n + 1}\n#### {2 * n + 1}"}
    for n in range(1, 9)
]


def _data_set(folder: Path, rows: Mapping[str, Mapping[str, Sequence[Mapping[str, object]]]]) -> Path:
    """Write a data set's rows, by configuration and split, with the card that says which file is which."""
    card = ["---", "configs:"]
    for configuration, splits in rows.items():
        card += [f"- config_name: {configuration}", "  data_files:"]
        (folder / configuration).mkdir(parents=True)
        for split, found in splits.items():
            card += [f"  - split: {split}", f"    path: {configuration}/{split}.jsonl"]
            write_rows(folder / configuration / f"{split}.jsonl", found)
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


def page(number: int) -> bytes:
    """Return a small page as PNG; each number's differs."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (160, 120), (255 - 30 * number, 255, 200 + 9 * number))
    ImageDraw.Draw(image).text((8, 8), f"{SENTENCES[number]}\n{WORDS[number]}", fill="black")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _pages(folder: Path, languages: Sequence[str] = ()) -> Path:
    """Write a data set of pages and questions in ViDoRe's form."""
    import datasets

    queries = [
        {"query-id": n, "query": f"What about the {WORDS[n % 6]}?"} | ({"language": language} if language else {})
        for n, (language, _) in enumerate((language, n) for language in languages or ("",) for n in range(6))
    ]
    corpus = datasets.Dataset.from_list(
        [{"corpus-id": n, "image": {"bytes": page(n), "path": None}} for n in range(6)]
    ).cast_column("image", datasets.Image())
    judged = [{"query-id": query["query-id"], "corpus-id": n % 6, "score": 1} for n, query in enumerate(queries)]
    card = ["---", "configs:"]
    for name, rows in (
        ("corpus", corpus),
        ("queries", datasets.Dataset.from_list(queries)),
        ("qrels", datasets.Dataset.from_list(judged)),
    ):
        (folder / name).mkdir(parents=True)
        rows.to_parquet(folder / name / "test-00000-of-00001.parquet")
        card += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}/test-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder
