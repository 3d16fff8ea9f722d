"""Runs that nobody made: studies for tests of comparisons and reports, with realistic numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmquant.models.info import ModelInfo
from llmquant.storage.store import Store
from llmquant.study.experiment import Documents, Experiment, ModelUse, PluginUse, RunId, Variant
from llmquant.study.record import StudyRecord
from llmquant.study.run import Failure, Measurement, Run, Sample

MIB = 2**20
HARDWARE = "NVIDIA A100-SXM4-40GB"
BASELINE = "bf16_baseline"
NO_FILES = ModelInfo("model", "sha256:0", (), "none")  # for checks of options that read nothing of a model
MODEL = ModelUse("meta-llama/Llama-3.2-1B", "commit:4e20de362430cd3b72f300e6b0f18e50e7166e08")


def quantizer(label: str) -> PluginUse:
    return PluginUse("llmquant/made_up", "1", {"label": label}, label)


def evaluator(label: str) -> PluginUse:
    return PluginUse(f"llmquant/{label.partition('(')[0]}", "1", {"label": label}, label)


def experiment(
    variant: str, measured_by: str, *, model: ModelUse = MODEL, limit: int | None = 50, hardware: str | None = None
) -> Experiment:
    documents = None if hardware else Documents(limit)
    return Experiment(Variant(model, quantizer(variant)), evaluator(measured_by), documents, 0, hardware)


def completed(
    asked: Experiment, *measurements: Measurement, compute_dtype: str = "bfloat16", torch: str = "2.13.0"
) -> Run:
    applied = {"method": "made up", "compute_dtype": compute_dtype, "note": ""}
    provenance = {"packages": {"torch": torch}, "device": HARDWARE, "threads": 8}
    times = ("2026-11-20T10:00:00.000+00:00", "2026-11-20T10:04:00.000+00:00")
    return Run(asked, "completed", measurements, applied, provenance, *times)


def failed(asked: Experiment, kind: str, message: str) -> Run:
    return replace(completed(asked), status="failed", failure=Failure(kind, message, "Traceback ...\n" + message))


def scored(task: str, metric: str, scores: Sequence[float], *, prompt: str = "p") -> tuple[Measurement, list[Sample]]:
    """Make a mean with its standard error, and the samples behind it."""
    values = np.asarray(scores, float)
    finite = bool(np.isfinite(values).all())
    stderr = float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 and finite else None
    measurement = Measurement(task, metric, float(values.mean()), higher_is_better=True, stderr=stderr, n=values.size)
    samples = [Sample(_digest(f"{task} {i}"), f"{prompt}{i}", {metric: float(v)}) for i, v in enumerate(values)]
    return measurement, samples


def perplexity(nll: Sequence[float], tokens: Sequence[int]) -> tuple[list[Measurement], list[Sample]]:
    """Make the three measurements of an evaluator of perplexity, and its windows."""
    mean = float(np.sum(nll) / np.sum(tokens))
    windows = [
        Sample(_digest(f"window {i}"), "w", {"nll": float(a), "tokens": float(b), "bytes": 4.0 * b})
        for i, (a, b) in enumerate(zip(nll, tokens, strict=True))
    ]
    values = {
        "perplexity": (math.exp(mean), ""),
        "nll_per_token": (mean, "nats"),
        "bits_per_byte": (mean / math.log(2) / 4, "bits"),
    }
    return [
        Measurement("perplexity", metric, value, unit, higher_is_better=False, n=len(windows))
        for metric, (value, unit) in values.items()
    ], windows


def memory(weights: float, state: float, load: float, prefill: float, decode: float) -> list[Measurement]:
    sizes = {
        "weights_bytes": weights,
        "weights_parameters_bytes": weights - state,
        "weights_quantization_state_bytes": state,
        "weights_buffers_bytes": 0.1,
        "checkpoint_disk_bytes": 2357.1,
        "load_peak_bytes": load,
        "prefill_peak_bytes": prefill,
        "decode_peak_bytes": decode,
    }
    return [Measurement("memory", metric, mib * MIB, "bytes", higher_is_better=False) for metric, mib in sizes.items()]


def latency(prefill: Mapping[int, float], decode: float) -> list[Measurement]:
    found = []
    for tokens, ms in prefill.items():
        at = {"prompt_tokens": tokens, "batch": 1}
        series = {"prefill_ms": ms, "ttft_ms": ms * 1.08, "decode_ms_per_token": decode * (1 + tokens / 20_000)}
        for metric, value in series.items():
            for suffix, factor in (("", 1.0), ("_p95", 1.07)):
                found.append(
                    Measurement("latency", metric + suffix, value * factor, "ms", higher_is_better=False, n=20, at=at)
                )
    return found


def throughput(rates: Mapping[int, float]) -> list[Measurement]:
    return [
        Measurement(
            "throughput",
            metric,
            rate * factor,
            "tokens/s",
            higher_is_better=True,
            n=10,
            at={"prompt_tokens": 128, "new_tokens": 64, "batch": batch},
        )
        for batch, rate in rates.items()
        for metric, factor in (("generated_tokens_per_s", 1.0), ("decode_tokens_per_s", 1.1))
    ]


class MadeUpStudy:
    """Collects runs into a record, as a study would leave them."""

    def __init__(self, *, notes: Sequence[str] = (), started_at: str = "") -> None:
        self.experiments: list[Experiment] = []
        self.runs: dict[RunId, Run] = {}
        self.samples: dict[RunId, dict[str, list[Sample]]] = {}
        self._notes = tuple(notes)
        self._started_at = started_at

    def add(self, run: Run | Experiment, samples: Mapping[str, list[Sample]] | None = None) -> None:
        """Add a run, or an experiment that has not run yet."""
        if isinstance(run, Experiment):
            self.experiments.append(run)
            return
        self.experiments.append(run.experiment)
        self.runs[run.run_id] = run
        if samples:
            self.samples[run.run_id] = dict(samples)

    @property
    def record(self) -> StudyRecord:
        digests = dict.fromkeys(e.variant.model.digest for e in self.experiments)
        return StudyRecord(
            "3f2a9c01d4e5",
            ", ".join(dict.fromkeys(e.variant.model.source for e in self.experiments)),
            tuple(self.experiments),
            dict.fromkeys(digests, BASELINE),
            self._notes,
            50,
            0,
            self._started_at,
        )

    def read(self, run_id: RunId) -> Mapping[str, list[Sample]]:
        return self.samples.get(run_id, {})


def store_of(found: MadeUpStudy, path: Path) -> Store:
    """Write a study into a store."""
    store = Store(path)
    for run in found.runs.values():
        store.commit(run, store.begin(), found.read(run.run_id))
    store.write_study(found.record.study_id, found.record.to_json())
    return store


def small_study() -> MadeUpStudy:
    """Make two variants with scores, answers and memory."""
    study = MadeUpStudy()
    for variant, scores in ((BASELINE, [1.0, 0.0] * 20), ("bnb_4bit_nf4", [1.0, 0.0, 0.0, 0.0] * 10)):
        mean, samples = scored("coqa", "em", scores)
        answered = [replace(sample, answer=variant, generated=4, cut=False, looping=False) for sample in samples]
        study.add(completed(experiment(variant, "lm_eval(coqa)"), mean), {"coqa": answered})
        study.add(completed(experiment(variant, "memory", hardware=HARDWARE), *memory(100.0, 1.0, 120.0, 5.0, 6.0)))
    return study


def realistic_study(n: int = 50, *, model: ModelUse = MODEL) -> MadeUpStudy:
    """Make six variants of a 1B model on a GPU; one of them fails, one has not been timed."""
    rng = np.random.default_rng(7)
    study = MadeUpStudy(notes=[f"{BASELINE} was added as the baseline"])
    difficulty = rng.random(n)
    windows = rng.normal(2.95, 0.35, 40) * 512
    variants = {
        BASELINE: (0.0, 1.0, memory(2357.1, 0, 2371.4, 84.2, 98.0), 12.3, 15.8, "bfloat16"),
        "bnb_8bit": None,
        "bnb_4bit_nf4": (0.10, 1.075, memory(981.3, 15.6, 2410.8, 101.7, 120.3), 18.7, 24.3, "float16"),
        "bnb_4bit_fp4": (0.16, 1.14, memory(981.3, 15.6, 2410.8, 101.7, 120.3), 18.5, 24.1, "float16"),
        "gptq_4bit_g128": (0.12, 1.06, memory(1014.9, 30.1, 1050.2, 92.5, 110.2), 14.2, 17.7, "float16"),
        "gptq_3bit_g128": (0.45, 1.62, memory(912.0, 29.0, 960.7, 92.5, 110.2), 21.0, 31.5, "float16"),
    }
    for label, numbers in variants.items():
        asked = [experiment(label, name, model=model, limit=n) for name in ("lm_eval(coqa)", "perplexity")]
        machine = ("memory", "latency", "throughput")
        timed = [experiment(label, name, model=model, hardware=HARDWARE) for name in machine]
        if numbers is None:
            message = "RuntimeError: CUDA error: invalid configuration argument at line 380 in file /src/csrc/ops.cu"
            study.add(failed(asked[0], "out_of_memory", "CUDA out of memory. Tried to allocate 2.20 GiB."))
            for other in [asked[1], *timed]:
                study.add(failed(other, "error", message))
            continue
        damage, factor, sizes, prefill, decode, dtype = numbers
        changed = rng.random(n) < damage * 1.6
        fresh = np.clip(rng.normal(0.62 - damage, 0.4, n), 0, 1).round(2)
        f1 = np.where(changed, fresh, np.clip(1.35 - difficulty * 1.5, 0, 1).round(2))
        f1_mean, f1_samples = scored("coqa", "f1", f1)
        em_mean, em_samples = scored("coqa", "em", (f1 >= 0.8).astype(float))
        both = [replace(a, scores={**a.scores, **b.scores}) for a, b in zip(f1_samples, em_samples, strict=True)]
        study.add(completed(asked[0], f1_mean, em_mean, compute_dtype=dtype), {"coqa": both})
        nll = windows + 512 * (math.log(factor) + (rng.normal(0, 0.02, 40) if factor > 1 else 0))
        values, kept = perplexity(nll, [512] * 40)
        study.add(completed(asked[1], *values, compute_dtype=dtype), {"perplexity": kept})
        study.add(completed(timed[0], *sizes, compute_dtype=dtype))
        study.add(completed(timed[1], *latency({128: prefill, 512: prefill * 3.4}, decode), compute_dtype=dtype))
        if label == "gptq_3bit_g128":
            study.add(timed[2])
        else:
            rates = {1: 1000 / decode, 4: 3100 / decode, 8: 4900 / decode}
            study.add(completed(timed[2], *throughput(rates), compute_dtype=dtype))
    return study


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
