"""What a study on Modal costs: at most, before it starts, and about, afterwards.

``dollars = jobs x hours x (GPUs x rate + cores x rate + GiB x rate)``. Building the image and keeping files on the
Volume are not in it, nor is what Modal grants a workspace free.
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
    """Dollars an hour.

    Attributes:
        gpu: of one GPU, by a key of the table.
        core: of one processor core.
        gib: of one GiB of memory.
        source: where they come from, for whoever reads the amount.
    """

    gpu: Mapping[str, float]
    core: float
    gib: float
    source: str

    def an_hour(self, gpu: GpuRequest, options: ModalOptions) -> float:
        """Return what a job costs an hour on `gpu`."""
        return gpu.count * self.gpu.get(gpu.name, 0.0) + options.cpus * self.core + options.memory_gib * self.gib


TABLE = Rates(
    {name: kind.dollars_an_hour for name, kind in GPUS.items()},
    CPU_CORE_DOLLARS_AN_HOUR,
    MEMORY_GIB_DOLLARS_AN_HOUR,
    f"list prices of {PRICES_DATE}",
)


def rates_from(billed: Mapping[str, object]) -> Rates:
    """Read the answer of Modal's billing API: dollars per unit and hour, by names such as ``gpu_a100_80gb``.

    What it does not name keeps the price of the dated table, and the source says so.
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
    """The most that some jobs can cost.

    Attributes:
        jobs: how many, each with one load of the weights.
        gpu: the dearest of those that were named.
        hours: of all jobs together, each as long as its timeout allows.
        dollars: for these.
        source: of the rates.
    """

    jobs: int
    gpu: GpuRequest
    hours: float
    dollars: float
    source: str

    def __str__(self) -> str:
        return (
            f"Modal: {self.jobs} job{'s' if self.jobs != 1 else ''} on {self.gpu}, at most {self.hours:.1f} h together "
            f"and ${self.dollars:.2f} ({self.source}; an estimate)"
        )


def estimate(jobs: int, options: ModalOptions, rates: Rates = TABLE) -> Estimate:
    """Say what `jobs` cost if each runs until its timeout on the dearest GPU that was named."""
    gpu = max(options.gpus, key=lambda gpu: rates.an_hour(gpu, options))
    hours = jobs * options.timeout / 3600
    return Estimate(jobs, gpu, hours, hours * rates.an_hour(gpu, options), rates.source)


def check_budget(worst: Estimate, budget: float | None, committed: float = 0.0) -> None:
    """Refuse what could cost more than the budget.

    Args:
        budget: dollars; ``None`` is no limit.
        committed: dollars that were spent already, or that running jobs can still cost.

    Raises:
        OptionError: naming the worst case and the budget.
    """
    if budget is None or committed + worst.dollars <= budget:
        return
    spent = f", beside ${committed:.2f} that is spent or promised already" if committed else ""
    raise OptionError(
        f"the budget is ${budget:.2f}, but in the worst case this costs ${worst.dollars:.2f}{spent}",
        hint="Raise the budget, lower the timeout, take a cheaper GPU, or ask for fewer variants.",
    )


def cost(seconds: float, driver_name: str, options: ModalOptions, rates: Rates = TABLE) -> float:
    """Say about what a job cost, in dollars.

    Args:
        seconds: that its container ran.
        driver_name: of the GPU that Modal gave, such as ``NVIDIA A100-SXM4-80GB``; where it names none of those that
            were asked for, the dearest of them counts.
    """
    longest_first = sorted(options.gpus, key=lambda gpu: -len(gpu.name))
    matching = (gpu for gpu in longest_first if all(part in driver_name for part in gpu.name.split("-")))
    gpu = next(matching, estimate(1, options, rates).gpu)
    return seconds / 3600 * rates.an_hour(gpu, options)


def _plain(name: str) -> str:
    """Reduce ``gpu_a100_80gb``, ``A100-80GB`` and ``A100 80GB`` to one spelling."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    return plain.removeprefix("gpu").removeprefix("nvidia")
