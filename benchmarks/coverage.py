"""Simulate studies with a known truth: how often the intervals of `llmquant.stats` cover it, and how wide they are.

    python benchmarks/coverage.py [--repetitions 10000] [--kinds skewed] [--sizes 50,200,1000]

For each kind of scores and number of documents, studies are drawn at the kind's own true difference (coverage and
width), at 0 (false *better*, false *worse* at a margin of 0) and at losses of 2 and 5 points (false *no worse* at that
margin). Rates may miss 95% and 2.5% by three Monte Carlo errors. Widths are compared with the narrowest valid rival:
one that passes the same tests for the kind at every size, because a method is chosen before the data are seen. Rivals
come from evalstats and statsmodels where these are installed; neither is a dependency of llmquant.

Prints Markdown, every rival's figures to standard error, and exits with 1 if one of our intervals fails.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmquant.stats import log_capital, paired_difference

MARGINS = (0.02, 0.05)
MOST_WIDTH = 1.15  # of the narrowest valid rival's
BATCH = 1000
TOKENS = 512
F1 = np.array([0.0, 0.25, 0.4, 0.5, 0.67, 0.8, 1.0])
F1_SHARES = np.array([0.3, 0.04, 0.04, 0.04, 0.04, 0.04, 0.5])
_BOTH = np.multiply.outer(F1_SHARES, F1_SHARES) * (F1[:, None] != F1)
F1_PAIRS = np.argwhere(np.triu(_BOTH))  # a lower and a higher score
F1_PAIR_SHARES = 2 * np.triu(_BOTH)[np.triu(_BOTH) > 0] / _BOTH.sum()
F1_CHANGE = float(F1_PAIR_SHARES @ (F1[F1_PAIRS[:, 1]] - F1[F1_PAIRS[:, 0]]))  # mean size


# -- kinds of scores ---------------------------------------------------------------------------------------------------


def right_wrong(rng, studies, n, truth, *, discordant):
    """Draw right and wrong answers of which a share differs."""
    draw = rng.random((studies, n))
    up, changed = (discordant + truth) / 2, draw < discordant
    b = np.where(changed, draw >= up, rng.random((studies, n)) < 0.6).astype(float)
    return np.where(changed, 1 - b, b), b


def one_sided(rng, studies, n, truth):
    """Draw answers that only get worse; at a difference of 0, 1% change in each direction."""
    return right_wrong(rng, studies, n, truth, discordant=abs(truth) or 0.02)


def f1_like(rng, studies, n, truth, *, changed, lean=0.0):
    """Draw F1 scores, some of which change; with groups of five, each group leans to gains or to losses."""
    loss = 0.5 - truth / (2 * changed * F1_CHANGE)
    if lean:
        loss = loss + lean * np.repeat(rng.choice([-1, 1], (studies, n // 5)), 5, axis=1)
    same = rng.choice(F1, (studies, n), p=F1_SHARES)
    low, high = F1[F1_PAIRS[rng.choice(len(F1_PAIRS), (studies, n), p=F1_PAIR_SHARES)]].transpose(2, 0, 1)
    worse, change = rng.random((studies, n)) < loss, rng.random((studies, n)) < changed
    return (
        np.where(change, np.where(worse, low, high), same),
        np.where(change, np.where(worse, high, low), same),
    )


def skewed(rng, studies, n, truth):
    """Draw scores of which 27% gain 0.1 and a few, 3% at a difference of 0, lose 0.9."""
    draw, broken = rng.random((studies, n)), 0.03 - truth / 0.9
    d = np.where(draw < broken, -0.9, np.where(draw < broken + 0.27, 0.1, 0.0))
    b = np.where(d < 0, 0.95, 0.4)
    return b + d, b


def clustered_right_wrong(rng, studies, n, truth):
    """Draw groups of five answers: in a third of groups, 30% of answers change, all of them in one direction."""
    groups = (studies, n // 5)
    direction = np.where(rng.random(groups) < 0.5 + 5 * truth, 1, -1) * (rng.random(groups) < 1 / 3)
    d = np.repeat(direction, 5, axis=1) * (rng.random((studies, n)) < 0.3)
    b = np.where(d, d < 0, rng.random((studies, n)) < 0.6).astype(float)
    return b + d, b


def windows(rng, studies, n, truth, *, autocorrelation):
    """Draw windows of a text, whose differences per token are a stationary first-order autoregression."""
    noise = rng.standard_normal((studies, n))
    for i in range(1, n):
        noise[:, i] = autocorrelation * noise[:, i - 1] + math.sqrt(1 - autocorrelation**2) * noise[:, i]
    b = rng.normal(-3, 0.3, (studies, n))
    return TOKENS * (b + truth + 0.05 * noise), TOKENS * b


@dataclass(frozen=True)
class Kind:
    """A kind of scores and its own true difference; `binary` marks 0/1 scores."""

    name: str
    draw: Callable
    truth: float = 0.0
    binary: bool = False
    grouped: bool = False
    ordered: bool = False


KINDS = (
    Kind("right/wrong, 5% up, 5% down", functools.partial(right_wrong, discordant=0.10), binary=True),
    Kind("right/wrong, 2% down", one_sided, -0.02, binary=True),
    Kind("right/wrong, 18% up, 20% down", functools.partial(right_wrong, discordant=0.38), -0.02, binary=True),
    Kind("F1-like, 30% changed", functools.partial(f1_like, changed=0.3)),
    Kind("F1-like, 90% tied", functools.partial(f1_like, changed=0.1)),
    Kind("skewed, 27% gain 0.1, 3% lose 0.9", skewed),
    Kind("clustered F1-like, groups of 5", functools.partial(f1_like, changed=0.4, lean=0.35), grouped=True),
    Kind("clustered right/wrong, groups of 5", clustered_right_wrong, binary=True, grouped=True),
    Kind("perplexity windows, independent", functools.partial(windows, autocorrelation=0.0), ordered=True),
    Kind("perplexity windows, AR(1) 0.3", functools.partial(windows, autocorrelation=0.3), ordered=True),
)


# -- intervals ---------------------------------------------------------------------------------------------------------


def ours(kind: Kind, v, b):
    found = paired_difference(
        v,
        b,
        weights=np.full(v.size, float(TOKENS)) if kind.ordered else None,
        groups=group_names(v.size) if kind.grouped else None,
        ordered=kind.ordered,
    )
    return (math.nan, math.nan) if found.low is None or found.high is None else (found.low, found.high)


@functools.cache
def group_names(n: int) -> list[str]:
    return [str(i // 5) for i in range(n)]


def rivals(kind: Kind):
    """Return the other packages' intervals for a kind: name, maximum number of studies, interval."""
    found = []
    per_token = TOKENS if kind.ordered else 1
    if importlib.util.find_spec("statsmodels"):
        from statsmodels.regression.linear_model import OLS
        from statsmodels.stats.weightstats import DescrStatsW

        def regression(v, b, **options):
            fit = OLS((v - b) / per_token, np.ones(v.size)).fit(use_t=True, **options)
            return fit.conf_int()[0]

        def clusters(v, b):
            groups = np.arange(v.size) // 5
            return regression(v, b, cov_type="cluster", cov_kwds={"groups": groups})

        def newey_west(v, b):
            lags = {"maxlags": int(4 * (v.size / 100) ** (2 / 9)), "use_correction": True}
            return regression(v, b, cov_type="HAC", cov_kwds=lags)

        if kind.grouped:
            found.append(("statsmodels, clustered OLS", math.inf, clusters))
        else:
            mean = "statsmodels, t", math.inf, lambda v, b: DescrStatsW((v - b) / per_token).tconfint_mean()
            found.append(mean)
        if kind.ordered:
            found.append(("statsmodels, Newey-West", math.inf, newey_west))
    if importlib.util.find_spec("evalstats"):
        from evalstats.core import resampling

        def folded(interval):
            return lambda v, b: interval(v.reshape(-1, 5), b.reshape(-1, 5), 0.05)

        def bootstrap_t(v, b):
            d = (v - b) / per_token
            return resampling.bootstrap_t_ci_1d(d, d.mean(), 1000, 0.05, np.random.default_rng(0))

        if kind.binary and kind.grouped:
            found.append(("evalstats, clustered score", math.inf, folded(resampling.clustered_score_paired_ci)))
            found.append(("evalstats, Obuchowski", math.inf, folded(resampling.modified_obuchowski_paired_ci)))
        elif kind.binary:
            for name, interval in (
                ("Bonett-Price", resampling.bonett_price_paired_ci),
                ("Newcombe", resampling.newcombe_mover_paired_ci),
                ("May-Johnson", resampling.mj_floor_paired_ci),
                ("corrected Tango", resampling.tango_scc_paired_ci),
            ):
                found.append((f"evalstats, {name}", math.inf, functools.partial(at_95, interval)))
        elif not kind.grouped and not kind.ordered:
            found.append(("evalstats, bootstrap-t", 2000, bootstrap_t))
    return found


def at_95(interval, v, b):
    return interval(v, b, 0.05)


def intervals(kind: Kind, interval, v, b):
    """Return the ends of every study's interval; studies with the same table of right and wrong share one."""
    if not kind.binary or kind.grouped:
        return np.array([interval(*pair) for pair in zip(v, b, strict=True)])
    tables = np.stack([(v * b).sum(1), v.sum(1), b.sum(1)], axis=1)
    _, first, where = np.unique(tables, axis=0, return_index=True, return_inverse=True)
    return np.array([interval(v[i], b[i]) for i in first])[where.reshape(-1)]


# -- what they promise -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The rates of one interval, by kind of error, and its ends at the kind's own difference."""

    rates: dict[str, float]
    ends: np.ndarray
    studies: int

    def failures(self) -> list[str]:
        """Return the rates that miss what they should be by more than three Monte Carlo errors."""
        found = []
        for name, rate in self.rates.items():
            promised = 0.95 if name == "coverage" else 0.025
            error = 3 * math.sqrt(promised * (1 - promised) / self.studies)
            if rate < promised - error if name == "coverage" else rate > promised + error:
                found.append(name)
        return found


def rates(kind: Kind, ends_at) -> Found:
    """Rate an interval from its ends at every true difference; a study without an interval claims nothing."""
    low, high = ends_at[kind.truth].T
    found = {"coverage": float(np.mean(~((low > kind.truth + 1e-9) | (high < kind.truth - 1e-9))))}
    low, high = ends_at[0.0].T
    found |= {"better": float(np.mean(low > 1e-9)), "worse": float(np.mean(high < -1e-9))}
    for margin in MARGINS:
        found[f"no worse, {100 * margin:.0f}"] = float(np.mean(ends_at[-margin][:, 0] > -margin + 1e-9))
    return Found(found, ends_at[kind.truth], len(low))


def simulate(kind: Kind, n: int, studies: int):
    """Return our interval's rates, and those of every rival."""
    methods = [("ours", math.inf, functools.partial(ours, kind)), *rivals(kind)]
    ends = {name: {} for name, *_ in methods}
    for truth in sorted({kind.truth, 0.0, *(-margin for margin in MARGINS)}):
        rng = np.random.default_rng([KINDS.index(kind), n, round(1000 * -truth)])
        drawn = [kind.draw(rng, min(BATCH, studies - done), n, truth) for done in range(0, studies, BATCH)]
        v, b = (np.concatenate(part) for part in zip(*drawn, strict=True))
        for name, most, interval in methods:
            some = slice(0, int(min(most, studies)))
            ends[name][truth] = intervals(kind, interval, v[some], b[some])
    found = {name: rates(kind, at) for name, at in ends.items()}
    return found.pop("ours"), found


def narrowest(mine: Found, others: dict[str, Found], valid) -> tuple[str, float]:
    """Return the valid rival compared with which our mean width is largest, and the ratio."""
    ratios = {}
    for name in valid:
        other = others[name]
        own = mine.ends[: other.studies]
        given = ~np.isnan(own[:, 0])
        if given.any():
            ratios[name] = float(np.ptp(own[given], axis=1).mean() / np.ptp(other.ends[given], axis=1).mean())
    return max(ratios.items(), key=lambda item: item[1], default=("none", math.nan))


def sequential(studies: int, population: int = 1000, slice_: int = 50) -> dict[str, float]:
    """Return how often the confidence sequence errs at any of its looks, one after every slice."""
    threshold = math.log(2 / 0.05)
    found = {}
    for name, truth, side in (
        ("better", 0.0, 1),
        ("worse", 0.0, -1),
        *((f"no worse, {100 * margin:.0f}", -margin, 1) for margin in MARGINS),
    ):
        rng = np.random.default_rng([99, round(1000 * -truth), side + 1])
        d = np.zeros(population)
        up = round(population * (0.10 + truth) / 2)
        d[:up], d[up : round(population * 0.10)] = 1, -1
        wrong = 0
        for done in range(0, studies, BATCH):
            some = min(BATCH, studies - done)
            x = (1 + side * rng.permuted(np.tile(d, (some, 1)), axis=1)) / 2
            capital = log_capital(x[:, :-1], np.full(some, (1 + side * truth) / 2), population)
            wrong += int((capital[:, slice_ - 1 :: slice_].max(1) >= threshold).sum())
        found[name] = wrong / studies
    return found


# -- the report --------------------------------------------------------------------------------------------------------


def row(kind: Kind, n: int, mine: Found, others: dict[str, Found], valid) -> tuple[str, bool]:
    """Return a line of the table, failures in bold, and whether there is none."""
    rival, ratio = narrowest(mine, others, valid)
    here, ratio_here = narrowest(mine, others, [name for name, other in others.items() if not other.failures()])
    failures = [*mine.failures(), *(["width"] if ratio > MOST_WIDTH else [])]
    given = ~np.isnan(mine.ends[:, 0])

    def shown(name: str, text: str) -> str:
        return f"**{text}**" if name in failures else text

    def beside(ratio: float, name: str) -> str:
        return "none" if math.isnan(ratio) else f"{ratio:.2f} x {name}"

    cells = [
        kind.name,
        str(n),
        shown("coverage", f"{100 * mine.rates['coverage']:.2f}"),
        f"{100 * (mine.rates['coverage'] - 0.95):+.2f}",
        *(shown(name, f"{100 * rate:.2f}") for name, rate in mine.rates.items() if name != "coverage"),
        f"{100 * np.ptp(mine.ends[given], axis=1).mean():.2f}" if given.any() else "-",
        f"{100 * (1 - given.mean()):.1f}",
        shown("width", beside(ratio, rival)),
        beside(ratio_here, here) if here != rival else "the same",
    ]
    return "| " + " | ".join(cells) + " |", not failures


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10_000, help="simulated studies per cell, default 10000")
    parser.add_argument("--kinds", default="", help="only kinds whose name contains this text, such as: skewed")
    parser.add_argument("--sizes", default="50,200,1000", help="documents per study, default 50,200,1000")
    options = parser.parse_args()
    for package in ("evalstats", "statsmodels"):
        if not importlib.util.find_spec(package):
            print(f"{package} is not installed: its intervals are not compared.\n")
    print("| scores | n | covers % | over | false better % | false worse % | ", end="")
    print(" | ".join(f"false no worse at {100 * margin:.0f} %" for margin in MARGINS), end="")
    print(" | width, points | no interval % | width / narrowest valid rival | / narrowest that passes at this n |")
    print("| --- |" + " ---: |" * (5 + len(MARGINS) + 2) + " --- | --- |")
    held, sizes = True, [int(size) for size in options.sizes.split(",")]
    for kind in KINDS:
        if options.kinds not in kind.name:
            continue
        start = time.perf_counter()
        found = {n: simulate(kind, n, options.repetitions) for n in sizes}
        names = next(iter(found.values()))[1]
        valid = [name for name in names if not any(others[name].failures() for _, others in found.values())]
        for n, (mine, others) in found.items():
            line, good = row(kind, n, mine, others, valid)
            held &= good
            print(line, flush=True)
            for name, other in {"ours": mine, **others}.items():
                shares = ", ".join(f"{key} {100 * rate:.2f}" for key, rate in other.rates.items())
                width = 100 * float(np.nanmean(np.ptp(other.ends, axis=1)))
                log(f"{kind.name}, n = {n}, {name}: {shares}; width {width:.2f}; fails: {other.failures()}")
        log(f"{time.perf_counter() - start:.0f} s")
    if not options.kinds:
        looks = sequential(options.repetitions)
        held &= all(rate <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / options.repetitions) for rate in looks.values())
        print("\nConfidence sequence, 5% up and 5% down of 1,000 documents, a look after every 50: ", end="")
        print(", ".join(f"false {name} {100 * rate:.2f}%" for name, rate in looks.items()) + ".")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
