"""Folders as lm-eval writes them with ``--output_path`` and ``--log_samples``, from a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

CHOICE_ROWS = [
    {
        "id": str(number),
        "question": f"{who} took number {number} to the {place}. Who did?",
        "choices": {"text": ["the moon", who, "a box", "no one"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[number % 4],
    }
    for number, (who, place) in enumerate(
        (who, place) for who in ("Mina", "Tom", "Ada", "Per", "Flea", "Ida") for place in ("mill", "ferry", "well")
    )
]
# Two filters read one answer.
_WORDS = """
task: words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 8
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: first-word
    filter:
      - function: regex
        regex_pattern: "(\\\\w+)"
      - function: take_first
  - name: any-letter
    filter:
      - function: regex
        regex_pattern: "([a-z])"
      - function: take_first
metadata:
  version: 1.0
"""
# Log-likelihoods of whole texts, and of the last word of a text.
_ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
_LAST_WORD = """
task: last_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
_CHOICES = """
include: {installed}
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {rows}
training_split: null
validation_split: null
"""


def noisy(module, scale: float):
    """Add noise to a model's weights, as quantizing does."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for weight in module.parameters():
            weight.add_(scale * weight.std() * torch.randn_like(weight))


def write_rows(path: Path, rows) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_output(folder: Path, subject, rows: Path, words: Path) -> Path:
    """Run lm-eval itself and let it write its files; return the folder."""
    import lm_eval.tasks
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    installed = Path(lm_eval.tasks.__file__).parent / "arc" / "arc_easy.yaml"
    (tasks / "choices.yaml").write_text(_CHOICES.format(installed=installed, rows=rows), encoding="utf-8")
    for name, text in (("words", _WORDS), ("rolling", _ROLLING), ("last_word", _LAST_WORD)):
        (tasks / f"{name}.yaml").write_text(text.format(rows=words), encoding="utf-8")
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    output = simple_evaluate(
        model=HFLM(pretrained=subject.module, tokenizer=subject.tokenizer, batch_size=1, softmax_dtype="float32"),
        model_args={"pretrained": "tiny/llama"},
        tasks=["arc_easy", "words", "rolling", "last_word"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        evaluation_tracker=tracker,
        bootstrap_iters=100,
        **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0),
    )
    samples = output.pop("samples")
    tracker.save_results_aggregated(results=output, samples=samples)
    for task in output["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return folder / "out"
