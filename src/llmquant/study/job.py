"""A job: experiments of one model in one quantization, for one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Device = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Job:
    """Experiments of one (model, quantizer): one process, one load of the weights.

    Attributes:
        study: id of the study; its folder in the store holds the job's record, journal and log.
        number: counts from 1 inside the study.
        model: `ModelUse` as JSON.
        experiments: ``(experiment as JSON, attempt)``, hardware experiments first.
        inputs: paths of the local files named in options, by content digest.
        device: device of the model.
        threads: number of CPU threads; ``None`` leaves torch's default.
        plugins: plugins added with `register`, as import strings of their specs.
        executor: name of the job's executor.
    """

    study: str
    number: int
    model: Mapping[str, Any]  # Any: a JSON object
    experiments: tuple[tuple[Mapping[str, Any], int], ...]  # Any: a JSON object
    inputs: Mapping[str, str] = field(default_factory=dict)
    device: Device = "cpu"
    threads: int | None = None
    plugins: tuple[Mapping[str, Any], ...] = ()  # Any: a JSON object
    executor: str = "local"
