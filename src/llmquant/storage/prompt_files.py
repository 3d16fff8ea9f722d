"""Files of prompts' texts: tables of texts by hash, named by the hashes in them, so that equal tables are one file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from llmquant.storage.sample_files import batches
from llmquant.study.experiment import hex_digest, visible
from llmquant.study.reading import MOST_BYTES, stored

LONGEST_BYTES = 2**16
PREFIX = "prompts-"


def write_prompts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts by hash into a file of `folder`; longer texts than `LONGEST_BYTES` lose their middle."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    longest = min(LONGEST_BYTES, MOST_BYTES // 2 // len(texts))  # a file of more than MOST_BYTES is not read again
    hashes = pa.array(map(visible, texts), pa.string())
    shortened = pa.array((_shortened(visible(text), longest) for text in texts.values()), pa.string())
    name = hex_digest(sorted(texts))
    table = pa.table({"prompt": hashes, "text": shortened})
    pq.write_table(table, folder / f"{PREFIX}{name}.parquet", compression="zstd")


def read_prompts(folder: Path, hashes: Collection[str]) -> dict[str, str]:
    """Return the texts of those hashes that occur in a file of `folder`.

    Raises:
        DamagedError: if a file cannot be read, or contains something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(list(hashes), pa.string())
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"{PREFIX}*.parquet")):
        with stored(str(path), "Delete the file; the texts of its prompts are then unknown."):
            for batch in batches(path):
                if [(field.name, field.type) for field in batch.schema] != [
                    (n, pa.string()) for n in ("prompt", "text")
                ]:
                    raise ValueError("it is not a table of prompts")
                rows = batch.filter(pc.is_in(batch["prompt"], value_set=wanted))
                found |= zip(rows["prompt"].to_pylist(), rows["text"].to_pylist(), strict=True)
    return found


def _shortened(text: str, longest: int) -> str:
    data = text.encode()
    half = longest // 2
    if len(data) <= longest:
        return text
    begin, end = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{begin}\n[... {len(data) - 2 * half:,} bytes are left out ...]\n{end}"
