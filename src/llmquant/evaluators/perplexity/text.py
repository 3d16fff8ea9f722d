"""Read the text for perplexity: a file, or a column of a data set on the Hub."""

from __future__ import annotations

from llmquant.errors import RunError, first_line
from llmquant.evaluators.hub_data import no_progress_bars
from llmquant.evaluators.perplexity.options import NAMED
from llmquant.plugins.context import Context
from llmquant.storage import text_files
from llmquant.study.experiment import InputFile


def read_text(source: InputFile | str, ctx: Context) -> str:
    """Read a text.

    Args:
        source: a file, ``wikitext2``, or ``repository:configuration:split:column``.

    Raises:
        RunError: if the text is unavailable.
    """
    if isinstance(source, InputFile):
        return text_files.read_text(ctx.local(source), source.name)
    return "\n\n".join(_column(*NAMED.get(source, source).split(":")))


@no_progress_bars()
def _column(repository: str, configuration: str, split: str, column: str) -> list[str]:
    import datasets

    try:
        rows = datasets.load_dataset(repository, configuration or None, split=split)
        texts = list(rows[column])
    except Exception as error:  # datasets, the Hub's client and its transport each raise their own errors
        reason = first_line(error)
        raise RunError(
            f"the text {repository}:{configuration}:{split}:{column} could not be fetched: {reason}",
            hint="Check the name and the connection, or use a text file: perplexity(FILE.txt).",
        ) from error
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise RunError(
                f"column {column!r} of {repository}, row {number}, is {text!r}", hint="Name a column of texts."
            )
    return texts
