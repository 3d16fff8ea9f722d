"""The cost of a study on Modal: the maximum before the start, and an estimate afterwards.

``dollars = jobs x hours x (GPUs x rate + cores x rate + GiB x rate)``. The formula leaves out
building the image, storing files on the Volume, and the free credits of a workspace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmquant.errors import OptionError
from llmquant.executors.modal.options import (
    CPU_CORE_DOLLARS_AN_HOUR,
    GPUS,
    MEMORY_GIB_DOLLARS_AN_HOUR,
    PRICES_DATE,
    GpuRequest,
    ModalOptions,
)


@dataclass(frozen=True)
class Rates:
    """Rates in dollars per hour.

    Attributes:
        gpu: rate per GPU, by a key of `GPUS`.
        core: rate per CPU core.
        gib: rate per GiB of memory.
        source: where the rates come from, for people.
    """

    gpu: Mapping[str, float]
    core: float
    gib: float
    source: str

    def an_hour(self, gpu: GpuRequest, options: ModalOptions) -> float:
        """Return the cost of a job on `gpu`, in dollars per hour."""
        return gpu.count * self.gpu.get(gpu.name, 0.0) + options.cpus * self.core + options.memory_gib * self.gib


TABLE = Rates(
    {name: kind.dollars_an_hour for name, kind in GPUS.items()},
    CPU_CORE_DOLLARS_AN_HOUR,
    MEMORY_GIB_DOLLARS_AN_HOUR,
    f"list prices of {PRICES_DATE}",
)


def rates_from(billed: Mapping[str, object]) -> Rates:
    """Read the rates from Modal's billing API: dollars per unit and hour, by names such as ``gpu_a100_80gb``.

    A GPU that is missing there keeps the price of the dated table, and `source` names such GPUs.
    """
    found = {_plain(name): float(str(rate)) for name, rate in billed.items()}
    gpus = dict(TABLE.gpu)
    missing = []
    for name, kind in GPUS.items():
        rate = next((found[key] for key in (_plain(name), _plain(kind.asked)) if key in found), None)
        if rate is None:
            missing.append(name)
        else:
            gpus[name] = rate
    if len(missing) == len(GPUS):
        return TABLE
    source = "Modal's rates for this workspace"
    if missing:
        source += f"; {', '.join(missing)}: {TABLE.source}"
    return Rates(gpus, found.get("cpu", TABLE.core), found.get("memory", TABLE.gib), source)


@dataclass(frozen=True)
class Estimate:
    """The maximum cost of some jobs.

    Attributes:
        jobs: number of jobs; each loads the weights once.
        gpu: the most expensive of the requested GPUs.
        hours: total time of all jobs if each runs until its timeout.
        dollars: maximum cost in dollars.
        source: source of the rates.
    """

    jobs: int
    gpu: GpuRequest
    hours: float
    dollars: float
    source: str

    def __str__(self) -> str:
        return (
            f"Modal: {self.jobs} job{'s' if self.jobs != 1 else ''} on {self.gpu}, maximum {self.hours:.1f} h in total "
            f"and ${self.dollars:.2f} ({self.source}; an estimate)"
        )


def estimate(jobs: int, options: ModalOptions, rates: Rates = TABLE) -> Estimate:
    """Estimate the cost of `jobs` if each runs until its timeout on the most expensive requested GPU."""
    gpu = max(options.gpus, key=lambda gpu: rates.an_hour(gpu, options))
    hours = jobs * options.timeout / 3600
    return Estimate(jobs, gpu, hours, hours * rates.an_hour(gpu, options), rates.source)


def check_budget(worst: Estimate, budget: float | None, committed: float = 0.0) -> None:
    """Refuse jobs that could cost more than the budget.

    Args:
        budget: dollars; ``None`` is no limit.
        committed: dollars that are spent already, or reserved for running jobs.

    Raises:
        OptionError: if the maximum cost is above the budget.
    """
    if budget is None or committed + worst.dollars <= budget:
        return
    spent = f", and ${committed:.2f} is spent or reserved already" if committed else ""
    raise OptionError(
        f"the budget is ${budget:.2f}, but the maximum cost is ${worst.dollars:.2f}{spent}",
        hint="Raise the budget, lower the timeout, use a cheaper GPU, or compare fewer variants.",
    )


def cost(seconds: float, driver_name: str, options: ModalOptions, rates: Rates = TABLE) -> float:
    """Estimate what a job cost, in dollars.

    Args:
        seconds: running time of the job's container.
        driver_name: the driver's name of the GPU, such as ``NVIDIA A100-SXM4-80GB``; if the name matches none of the
            requested GPUs, the most expensive of them counts.
    """
    longest_first = sorted(options.gpus, key=lambda gpu: -len(gpu.name))
    matching = (gpu for gpu in longest_first if all(part in driver_name for part in gpu.name.split("-")))
    gpu = next(matching, estimate(1, options, rates).gpu)
    return seconds / 3600 * rates.an_hour(gpu, options)


def _plain(name: str) -> str:
    """Reduce ``gpu_a100_80gb``, ``A100-80GB`` and ``A100 80GB`` to one spelling."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    return plain.removeprefix("gpu").removeprefix("nvidia")
