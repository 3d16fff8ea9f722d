"""How often a study that stops as soon as it is sure gives a false verdict, and how many documents it saves.

Each repetition draws the documents of one benchmark in another random order and looks after 50, 100, 200, 400, ...
documents, as `llmquant compare --until-sure` does. Run: ``python benchmarks/until_sure.py`` (six minutes on one core).
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmquant import stats

MARGIN, LEVEL = 0.02, 0.95
FIRST, CHUNK = 50, 100
THRESHOLD = math.log(2 / (1 - LEVEL))


def right_wrong(changed: float, size: int, difference: float, rng: np.random.Generator):
    """Differences of right/wrong answers, of which this share changes, with exactly this mean."""
    gained, lost = round(size * (changed + difference) / 2), round(size * (changed - difference) / 2)
    return np.repeat([1.0, -1.0, 0.0], [gained, lost, size - gained - lost])


def f1_like(size: int, difference: float, rng: np.random.Generator):
    """Differences of F1: three in ten documents change, by any amount; exactly this mean."""
    values = np.where(rng.random(size) < 0.3, rng.uniform(-0.7, 0.7, size), 0.0)
    changed = values != 0
    values[changed] += (difference - values.mean()) * size / changed.sum()
    return values


def skewed(size: int, difference: float, rng: np.random.Generator):
    """Many answers are reworded a little (27% gain 0.1), a few are lost (3% lose 0.9); exactly this mean."""
    values = rng.permutation(np.repeat([0.1, -0.9, 0.0], [round(0.27 * size), round(0.03 * size), size]))[:size]
    values[values > 0] += (difference - values.mean()) * size / (values > 0).sum()
    return values


def looks(size: int) -> list[int]:
    """Return after how many documents a study looks; the last look, at the whole benchmark, is exact."""
    return [FIRST * 2**k for k in range(64) if FIRST * 2**k < size]


def excluded(x: NDArray[np.float64], mean: float, size: int) -> NDArray[np.bool_]:
    """Return, by repetition and look, whether a mean, and all lower ones, are below the interval."""
    highest = np.maximum.accumulate(stats.log_capital(x, mean, size), -1)
    return highest[:, np.array(looks(size)) - 1] >= THRESHOLD


def study(differences: NDArray[np.float64], repetitions: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the shares of the verdicts that are ever given before the end, and the mean documents to the first one."""
    size, seen = differences.size, looks(differences.size)
    ends = np.array([*seen, size])
    counts, needed = dict.fromkeys(("no worse", "better", "worse"), 0), []
    for start in range(0, repetitions, CHUNK):
        rows = np.repeat(differences[None], min(CHUNK, repetitions - start), 0)
        x = (1 + rng.permuted(rows, axis=1)[:, : seen[-1]]) / 2
        above, below = excluded(x, (1 - MARGIN) / 2, size), excluded(1 - x, (1 + MARGIN) / 2, size)
        counts["no worse"] += above.any(1).sum()
        counts["worse"] += below.any(1).sum()
        counts["better"] += excluded(x, 0.5, size).any(1).sum()
        sure = np.concatenate([above | below, np.ones((len(x), 1), bool)], 1)
        needed.append(ends[sure.argmax(1)])
    return {name: count / repetitions for name, count in counts.items()} | {"needed": np.concatenate(needed).mean()}


def main() -> None:
    """Print a table; fail if a false verdict is too frequent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10_000)
    repetitions = parser.parse_args().repetitions
    bound = 0.025 + 3 * math.sqrt(0.025 * 0.975 / repetitions)
    kinds = {
        "right/wrong, 10% change": partial(right_wrong, 0.10),
        "right/wrong, 38% change": partial(right_wrong, 0.38),
        "F1-like": f1_like,
        "skewed": skewed,
    }
    print(f"{repetitions} repetitions, margin {MARGIN:.0%}; a false verdict may have a share of {bound:.2%}")
    print("| scores | documents | true difference | no worse | better | worse | needed | saved | fixed n |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    failed = False
    for name, kind in kinds.items():
        for size in (1000, 4000):
            for difference in (-MARGIN, 0.0, -0.05, 0.05):
                rng = np.random.default_rng(0)
                differences = kind(size, difference, rng)
                assert math.isclose(differences.mean(), difference, abs_tol=1e-12)
                assert abs(differences).max() <= 1
                found = study(differences, repetitions, rng)
                false = {-MARGIN: ("no worse", "better"), 0.0: ("better", "worse")}.get(difference, ())
                failed |= any(found[verdict] > bound for verdict in false)
                fixed = stats.documents_needed(MARGIN, float(differences.std()), difference=difference) or size
                print(
                    f"| {name} | {size} | {difference:+.0%} | "
                    + " | ".join(f"{found[v]:.2%}" for v in ("no worse", "better", "worse"))
                    + f" | {found['needed']:.0f} | {1 - found['needed'] / size:.0%} | {min(fixed, size)} |",
                    flush=True,
                )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
