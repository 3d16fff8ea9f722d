"""The examples run as notebooks, in real kernels, and their pages hold what they should show and nothing else."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

EXAMPLES = Path(__file__).parents[2] / "examples"


def client(notebook: nbformat.NotebookNode, folder: Path, **options: bool) -> NotebookClient:
    return NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, **options
    )


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_run_as_notebooks(example: Path, folder: Path, request: pytest.FixtureRequest):
    """No cell fails; a study leaves one line of progress; the page is written for people to look at."""
    if example.stem == "study_on_modal":
        request.getfixturevalue("modal")
    notebook = jupytext.read(example)
    try:
        client(notebook, folder).execute()
    finally:
        page, _ = HTMLExporter().from_notebook_node(notebook)
        (folder / f"{example.stem}.html").write_text(page, encoding="utf-8")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stderr = [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    ours = "Deploying an app on Modal; building its image may take minutes\n"
    assert {*stderr} <= {ours}, "another library's bar or message"
    assert "Loading weights" not in page
    studies = [cell for cell in cells if "lq.compare(" in cell.source]
    assert studies
    for study in studies:
        shown = [output.data["text/plain"] for output in study.outputs if output.output_type == "display_data"]
        assert all(re.fullmatch(r"(\d+) of \1 experiments done.*, after .*", text) for text in shown)


def test_an_interrupted_cell_shows_one_line(tiny_model: Path, tmp_path: Path):
    """The kernel is interrupted as the stop button does it; the next cell finds what was stored."""
    call = f"lq.compare({str(tiny_model)!r}, ['fp32_baseline'], ['memory', 'latency(repeats=100000, budget_s=600)'])"
    cells = (f"import llmquant as lq\n{call}", "lq.Comparison.from_store('results')")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    executing = client(notebook, tmp_path, allow_errors=True)

    async def interrupt() -> None:
        while not list((tmp_path / "results" / "runs").glob("*/run.json")):
            await asyncio.sleep(0.2)
        await executing.km.interrupt_kernel()

    async def execute() -> None:
        async with executing.async_setup_kernel():
            interrupting = asyncio.create_task(interrupt())
            for index, cell in enumerate(notebook.cells):
                await executing.async_execute_cell(cell, index)
            await interrupting

    asyncio.run(execute())
    *_, error = notebook.cells[0].outputs
    assert error.traceback == ["interrupted: 1 of 2 experiments are stored in results; the same call continues"]
    (shown,) = notebook.cells[1].outputs
    assert "1 of 2 experiments completed" in shown.data["text/plain"]
