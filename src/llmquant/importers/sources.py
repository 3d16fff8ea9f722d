"""What the user names for a variant: ``NAME=PATH`` or a path, and whose results are there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmquant.errors import OptionError
from llmquant.importers.files import Imported, read_json
from llmquant.importers.llama_cpp import llama_cpp_results
from llmquant.importers.lm_eval import is_lm_eval, lm_eval_results, result_files
from llmquant.importers.mteb import is_mteb, mteb_results
from llmquant.study.experiment import path_of, visible


@dataclass(frozen=True)
class Source:
    """A file or folder with results of a variant.

    Attributes:
        name: the variant's name; by default the folder's, or the file's without its ending.
        path: where the results are.
        named: whether the user wrote the name.
    """

    name: str
    path: Path
    named: bool

    @classmethod
    def parse(cls, text: str | Path) -> Source:
        """Read ``NAME=PATH`` or a path.

        Raises:
            OptionError: if nothing is there, or the name is empty.
        """
        name, equals, rest = str(text).partition("=")
        named = bool(equals) and not path_of(text).exists()
        path = path_of(rest if named else text)
        if not path.exists():
            raise OptionError(f"{path} does not exist", hint="Give a folder or file of results, or NAME=PATH.")
        if not named:
            name = path.resolve().stem if path.is_file() else path.resolve().name
        if not name.strip():
            raise OptionError(f"{str(text)!r} gives the variant no name", hint="Write NAME=PATH.")
        return cls(visible(name.strip()), path, named)


def sources_of(texts: Iterable[str | Path]) -> dict[str | Path, Source]:
    """Read several sources; several of one name, which the user wrote, belong to one variant.

    Raises:
        OptionError: if there are none, or two variants would have the same name.
    """
    found: dict[str | Path, Source] = {}
    for text in texts:
        source = Source.parse(text)
        others = [other for other in found.values() if other.name == source.name]
        if others and not all(each.named for each in (source, *others)):
            raise OptionError(
                f"{others[0].path} and {source.path} would both be the variant {source.name!r}",
                hint="Give each a name: NAME=PATH.",
            )
        found[text] = source
    if not found:
        raise OptionError("there is nothing to import", hint="Give folders or files of results, as NAME=PATH.")
    return found


def results_at(path: Path) -> list[Imported]:
    """Read the results at a path, of whichever program they are.

    Raises:
        OptionError: if a file is damaged, or nothing there is a result of a program that is known.
    """
    if path.is_dir():
        if (path / "studies").is_dir() and (path / "runs").is_dir():
            raise OptionError(
                f"{path} is a store of llmquant, whose runs do not pair with imported ones: they identify a prompt by "
                "its token ids, and other programs' files have only its text",
                hint="Import the results of one program for every variant, or run all of them with llmquant.",
            )
        files = result_files(path)
        found = lm_eval_results(files, path) if files else mteb_results(path)
        if not found:
            raise OptionError(
                f"{path} has no results of lm-eval (results_<date>.json) or mteb (<Task>.json)",
                hint="For llama.cpp give the file of its output.",
            )
        return found
    if path.suffix == ".jsonl":
        raise OptionError(f"{path} has samples only", hint="Give the folder, or the results_<date>.json beside it.")
    if path.suffix != ".json":
        return llama_cpp_results(path)
    data = read_json(path)
    if is_lm_eval(data):
        return lm_eval_results([path], path)
    if is_mteb(data):
        return mteb_results(path)
    raise OptionError(f"{path} is neither a result file of lm-eval nor one of mteb", hint="Give another file.")
