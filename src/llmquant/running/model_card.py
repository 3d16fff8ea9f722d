"""The model card of a quantized checkpoint: what was done to which model, and how to load and measure it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from llmquant.study.neutral import markdown_text, printable

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.quantizer import AppliedQuantization


def model_card(
    info: ModelInfo,
    applied: AppliedQuantization,
    quantizer: str,
    recipe: Mapping[str, Any] | None,  # Any: a JSON object
    weight_bytes: int,
    command: str = "",
) -> str:
    """Return a model card in Markdown with the front matter that the Hub reads.

    Args:
        info: the model that was quantized.
        applied: properties read back from the quantized weights.
        quantizer: the quantizer as requested.
        recipe: how the checkpoint was made; ``None`` if it was quantized while loading.
        weight_bytes: total size of the files with weights.
        command: command that serves the file; ``""`` for a checkpoint that transformers loads.
    """
    name = info.use().name
    front: dict[str, Any] = {
        "library_name": applied.method if command else "transformers",
        "tags": ["llmquant", "quantized", applied.method],
    }  # Any: YAML
    if info.repo:
        front |= {"base_model": info.repo, "base_model_relation": "quantized"}
    facts = [
        ("quantized from", f"{name} ({info.digest})"),
        ("preset", quantizer),
        ("method", f"{applied.method}, {applied.code}, {applied.bits:g} bits per weight"),
        ("group size", "one row" if applied.block_size is None else str(applied.block_size)),
        ("layers", f"{applied.layers_quantized} quantized; not quantized: {', '.join(applied.layers_left) or 'none'}"),
        ("weights", f"{weight_bytes / 2**20:,.1f} MiB on disk"),
        *_made(recipe),
        *([("note", applied.note)] if applied.note else []),
    ]
    rows = "\n".join(f"| {what} | {markdown_text(said)} |" for what, said in facts)
    source = shlex.quote(printable(info.source if info.repo else f"./{name}"))
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {markdown_text(f"{name}, {quantizer}")}

| | |
| --- | --- |
{rows}

{f"```console{chr(10)}{command}{chr(10)}```" if command else _TRANSFORMERS}

To compare quality, memory and speed with the original model:

```console
llmquant compare {source} -q bf16_baseline -q {shlex.quote(quantizer) if command else '"prequantized(./this-folder)"'}
```
"""


_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this-folder", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("this-folder")
```"""


def _made(recipe: Mapping[str, Any] | None) -> list[tuple[str, str]]:  # Any: a JSON object
    if recipe is None:
        return []
    engine = ", ".join(f"{name} {version}" for name, version in recipe["engine"].items())
    made = [("made with", f"{engine}, llmquant {recipe['packages']['llmquant']}, in {recipe['seconds']:.0f} s")]
    calibration = recipe["calibration"]
    if calibration:
        text = f"{calibration['source']}: {calibration['samples']} sequences of {calibration['sequence_length']} tokens"
        made.insert(0, ("calibration", f"{text} ({calibration['tokens_digest']})"))
    return made
