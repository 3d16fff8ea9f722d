"""The command that writes a new plugin package from the templates in the folder ``templates``."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmquant.cli.command import Command
from llmquant.errors import OptionError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from llmquant.study.experiment import PluginKind

new_plugin_app = typer.Typer(rich_markup_mode=None)

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIXES = (".py", ".toml", ".md", ".yml")
_MODEL = "HuggingFaceTB/SmolLM2-135M"
# Per kind: what the generated plugin does, and the command that uses it.
_KINDS: dict[PluginKind, tuple[str, str]] = {
    "quantizer": (
        "Weights of 4 bits, rounded to nearest in groups.",
        f"llmquant compare {_MODEL} -q bf16_baseline -q newplugin_g32 -e perplexity -e memory",
    ),
    "evaluator": (
        "Log-likelihood of texts, in nats per token.",
        f"llmquant compare {_MODEL} -q bf16_baseline -q bnb_4bit_nf4 -e newplugin",
    ),
    "embedder": (
        "Mean of a transformer's last hidden states.",
        'llmquant compare "newplugin(sentence-transformers/all-MiniLM-L6-v2)" random -e "mteb(NanoNFCorpusRetrieval)"',
    ),
    "executor": (
        "Jobs in processes of this machine, several at a time.",
        f'llmquant compare {_MODEL} -q bf16_baseline -q bnb_4bit_nf4 -e memory --on "newplugin(slots=2)"',
    ),
}
_CHECKPOINT_SPEC = 'target="llmquant_newplugin.checkpoint:NewPluginCheckpoint",\n            checkpoint=True,'


def write_plugin(name: str, kind: PluginKind, folder: Path, *, writes_checkpoint: bool = False) -> tuple[str, ...]:
    """Write a package with one plugin that passes its own tests.

    Args:
        name: the plugin's name; the package is called ``llmquant-NAME``.
        folder: where the package's folder is made.
        writes_checkpoint: whether a quantizer writes checkpoints that transformers loads.

    Returns:
        The commands to continue with.

    Raises:
        OptionError: if the name cannot be a package's.
        UnsupportedError: if only a quantizer can do what is asked.
        RequestError: if the folder exists, or an installed plugin has the name.
    """
    # Here, since every command imports this module.
    from llmquant.plugins.registry import registry
    from llmquant.storage.atomic import replacing

    name = name.removeprefix("llmquant-")
    snake = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(snake):
        raise OptionError(
            f"{name!r} cannot be the name of a Python package",
            hint="Use lower-case letters, digits and '-', and begin with a letter, for example my-method.",
        )
    if writes_checkpoint and kind != "quantizer":
        raise UnsupportedError(f"an {kind} writes no checkpoints", hint="Leave out --writes-checkpoint.")
    summary, compare = _KINDS[kind]
    for other in _KINDS:
        if registry().offers(other, snake):
            plugin, _ = registry().find(other, snake)
            raise RequestError(f"{snake!r} is the name of an installed {other}, from {plugin.package}")
    package = f"llmquant-{name.replace('_', '-')}"
    target = folder / package
    if target.exists():
        raise RequestError(f"{target} exists already", hint="Give another name, or delete the folder first.")
    commands = (f'pip install -e "./{package}[test]"', f"pytest {package}", compare)
    names = {
        "SUMMARY": summary,
        "COMMANDS": "\n".join(commands),
        "KIND.py": f"{kind}.py",
        "llmquant-newplugin": package,
        "newplugin": snake,
        "NewPlugin": "".join(part.capitalize() for part in snake.split("_")),
    }

    def filled(text: str) -> str:
        for placeholder, value in names.items():
            text = text.replace(placeholder, value)
        return text

    with replacing(target) as partial:
        for part in ("package", kind, *(["checkpoint"] if writes_checkpoint else [])):
            for file in sorted((_TEMPLATES / part).rglob("*")):
                if file.suffix in _SUFFIXES:  # no caches
                    text = file.read_text(encoding="utf-8")
                    if writes_checkpoint:
                        text = text.replace('target="llmquant_newplugin.quantizer:NewPlugin",', _CHECKPOINT_SPEC)
                    out = partial / filled(str(file.relative_to(_TEMPLATES / part)))
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(filled(text), encoding="utf-8")
    return tuple(map(filled, commands))


@new_plugin_app.command("new-plugin", cls=Command)
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin, for example my-method.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help="quantizer, evaluator, embedder or executor.")],
    writes_checkpoint: Annotated[
        bool, typer.Option("--writes-checkpoint", help="The quantizer writes checkpoints that transformers loads.")
    ] = False,
) -> None:
    """Write a small plugin package that passes its own tests.

    The package is written to the folder llmquant-NAME, with a README and a workflow for GitHub.
    """
    from llmquant.cli.inspect import say

    if kind not in _KINDS:
        raise OptionError(f"kind is {kind!r}", hint=f"Use {', '.join(_KINDS)}.")
    commands = write_plugin(name, kind, Path(), writes_checkpoint=writes_checkpoint)
    say("The package passes its own tests. Continue with:", *(f"  {command}" for command in commands))
