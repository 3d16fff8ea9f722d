"""The output of llama.cpp's perplexity program, with and without ``--kl-divergence``, saved as a text file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from llmquant.errors import OptionError
from llmquant.importers.files import AGAIN, Imported, checked, digest_of_files
from llmquant.study.call import Json
from llmquant.study.reading import read_bytes
from llmquant.study.run import Measurement, Result

PROGRAM = "llama.cpp"
TASK = "perplexity"
_NO_SCORES = "the output of llama.cpp has no values per chunk or token"
_NOTE = "the errors that llama.cpp states count tokens as independent: real errors are larger"
_NUMBER = r"(-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|nan|inf))"
_ERROR = rf"(?:\s*(?:±|\+/-)\s*{_NUMBER})?"
# Messages of the program's log have a time and a level before them.
_BEGIN = r"^(?:[\d.]+ [A-Z] )?"
# "PPL over 10 chunks for n_ctx=512 = ..." is how ik_llama.cpp writes it.
_FINAL = re.compile(rf"Final estimate: PPL(?: over \d+ chunks for n_ctx=\d+)? = {_NUMBER}{_ERROR}")
_SETTINGS = {
    "chunks": re.compile(r"(?:over|computing over) (\d{1,9}) chunks"),
    "n_ctx": re.compile(r"chunks(?: for|,) n_ctx=(\d{1,9})"),
}
# Lines as they are since 2024, and for the divergence the earlier ones, each with its metric of the evaluator
# `fidelity`, its unit and its scale.
_LINES: tuple[tuple[str, str, str, float], ...] = (
    (r"Mean PPL\(Q\) +", "perplexity", "", 1),
    (r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +", "ln_ppl_ratio", "nats", 1),
    (r"(?:Mean +KLD|Average)", "kl_divergence", "nats", 1),
    (r"Median +(?:KLD)?", "kl_median", "nats", 1),
    (r"(?:99\.0% +KLD|KLD_99 +)", "kl_p99", "nats", 1),
    (r"99\.9% +KLD", "kl_p999", "nats", 1),
    (r"Maximum(?: KLD)?", "kl_max", "nats", 1),
    (r"Same top p", "top1_agreement", "", 0.01),
    (r"Mean +Δp", "dp_mean", "", 0.01),
    (r"RMS Δp +", "dp_rms", "", 0.01),
    (r" ?1\.0% +Δp", "dp_p1", "", 0.01),
    (r"99\.0% +Δp", "dp_p99", "", 0.01),
)
_HEADLINES = ("perplexity", "kl_divergence", "top1_agreement")


def llama_cpp_results(path: Path) -> list[Imported]:
    """Read the numbers that the program printed at its end, with the errors that it states.

    Raises:
        OptionError: if the file cannot be read or has no such numbers.
    """
    try:
        text = read_bytes(path).decode(errors="replace")
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}", hint=AGAIN) from error
    found = list(_measurements(text))
    if not found:
        raise OptionError(
            f"{path} has no 'Final estimate: PPL = ...' and no 'KL divergence statistics'",
            hint="Save all output of llama-perplexity: llama-perplexity ... > ppl.txt 2>&1",
        )
    protocol: dict[str, Json] = {
        name: int(match[1]) for name, line in _SETTINGS.items() if (match := line.search(text)) is not None
    }
    result = checked(Result(TASK, found, (), {**protocol, "no_scores": _NO_SCORES}), path)
    return [Imported(PROGRAM, result, protocol, digest_of_files([path]), notes=(_NOTE,))]


def _measurements(text: str) -> Iterator[Measurement]:
    final = _FINAL.findall(text)
    if final:  # of a file to which several outputs were appended the last one
        yield _measurement("perplexity", "", 1, *final[-1])
    if "statistics" not in text:
        return
    for line, metric, unit, scale in _LINES:
        said = re.findall(rf"{_BEGIN}{line}: *{_NUMBER}{_ERROR} *%?\s*$", text, re.MULTILINE)
        if said and not (metric == "perplexity" and final):
            yield _measurement(metric, unit, scale, *said[-1])


def _measurement(metric: str, unit: str, scale: float, value: str, error: str) -> Measurement:
    stderr = scale * float(error) if error else math.nan
    return Measurement(
        TASK,
        metric,
        scale * float(value),
        unit,
        # A smaller divergence is not a better model; a smaller perplexity is.
        False if "ppl" in metric or metric == "perplexity" else None,
        stderr if math.isfinite(stderr) else None,
        headline=metric in _HEADLINES,
    )
