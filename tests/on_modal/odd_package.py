"""A third party's package, installed from a folder: a module with data, entry points, and what an installer leaves."""

from __future__ import annotations

import json
from pathlib import Path

_HOOKS = """
from dataclasses import dataclass
from llmquant import PluginSpec, hookimpl

@dataclass(frozen=True)
class OddOptions:
    tag: str = ""

@hookimpl
def llmquant_register():
    return [
        PluginSpec(
            kind="evaluator",
            name="odd",
            summary="Tells where it is.",
            options="llmquant_odd.hooks:OddOptions",
            target="llmquant_odd.evaluator:Odd",
        )
    ]
"""

_EVALUATOR = """
import hashlib, importlib.metadata, json, os, pathlib
import llmquant
from llmquant import Measurement, Result

class Odd:
    def __init__(self, options):
        self.options = options

    def evaluate(self, subject, ctx):
        here = pathlib.Path(__file__).parent
        entries = importlib.metadata.entry_points(group="llmquant", name="odd")
        details = {
            "module": str(here),
            "llmquant": llmquant.__file__,
            "metadata": [str(entry.dist._path) for entry in entries],
            "words": json.loads((here / "words.json").read_text()),
            "token": hashlib.sha256(os.environ.get("HF_TOKEN", "").encode()).hexdigest(),
            "hub": os.environ.get("HF_HOME", ""),
            "cache": str(ctx.cache.root),
        }
        layers = float(subject.info.config["num_hidden_layers"])
        yield Result("odd", [Measurement("odd", "layers", layers)], details=details)
"""


def install(site: Path) -> None:
    """Write it into a folder that is on the import path."""
    module, info = site / "llmquant_odd", site / "llmquant_odd-1.0.dist-info"
    module.mkdir(parents=True)
    info.mkdir()
    (module / "__init__.py").write_text("")
    (module / "hooks.py").write_text(_HOOKS)
    (module / "evaluator.py").write_text(_EVALUATOR)
    (module / "words.json").write_text('["odd", "even"]')
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmquant-odd\nVersion: 1.0\nRequires-Dist: llmquant\n")
    (info / "entry_points.txt").write_text("[llmquant]\nodd = llmquant_odd.hooks\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/entry_points.txt,,\n")
    (info / "direct_url.json").write_text(json.dumps({"url": f"file://{site}", "dir_info": {"editable": True}}))
