"""Imported results as a study of a store, compared like the runs that were made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from llmquant.errors import OptionError, nearest, raise_all
from llmquant.importers.differences import differences
from llmquant.importers.files import Imported
from llmquant.importers.sources import results_at, sources_of
from llmquant.results.comparison import Comparison
from llmquant.storage.blanking import blank_secrets
from llmquant.storage.store import Store
from llmquant.study.call import Call, Json
from llmquant.study.experiment import Experiment, ModelUse, PluginUse, Variant, digest_of, hex_digest, visible
from llmquant.study.margins import read_margins, without_score
from llmquant.study.plain import plain_arguments
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run

# A plugin's full name has a slash: no run made here has the identity of an imported one, see `Experiment.imported`.
_PLUGIN = "imported"
_VERSION = "1"


@plain_arguments
def import_results(
    sources: str | Path | Sequence[str | Path],
    *,
    baseline: str | None = None,
    model: str | None = None,
    margin: float | str | Sequence[float | str] | None = None,
    store: str | Path | Store = "results",
) -> Comparison:
    """Import results of lm-eval, mteb and llama.cpp as one study of a store.

    Args:
        sources: folders and files, one variant each, as ``NAME=PATH`` or a path, whose last part is then the name;
            several with one name belong to one variant.
        baseline: the variant to compare the others with, by its name or as written in `sources`; ``None`` is the first.
        model: name of the model; ``None`` is the one in the baseline's files.
        margin: the largest acceptable loss, as for `llmquant.compare`.
        store: folder of the results.

    Returns:
        The comparison; notes say what could not be compared, and why.

    Raises:
        OptionError: if files are damaged or do not agree with each other, or a name is missing; nothing is stored.
    """
    margins = read_margins(margin)
    named = sources_of([sources] if isinstance(sources, str | Path) else sources)
    found: dict[str, list[Imported]] = {}
    for source in named.values():
        mine = found.setdefault(source.name, [])
        for each in results_at(source.path):
            if any((each.program, each.task) == (other.program, other.task) for other in mine):
                raise OptionError(
                    f"{source.name} has results of {each.task} twice, the second time in {source.path}",
                    hint="Import them as two variants, or leave one out.",
                )
            mine.append(each)
    first = next(iter(found))
    notes = []
    if baseline is None:
        baseline = first
        if len(found) > 1:
            notes.append(
                f"{first} is the baseline, because it was given first; --baseline (in Python: baseline) changes it"
            )
    elif baseline not in found:
        if baseline not in named:
            raise OptionError(f"no variant is called {baseline!r}", hint=nearest(baseline, found))
        baseline = named[baseline].name
    imported = [each for results in found.values() for each in results]
    raise_all(without_score(margins, {m.metric for each in imported for m in each.result.measurements}))
    model = _shown(model or _model_of(found[baseline], baseline))
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    labels = _labels(imported)
    runs = {
        run.run_id: (run, each)
        for name, results in found.items()
        for each in results
        for run in [_run(model, name, each, labels[_key(each)], now)]
    }
    for name, results in found.items():
        notes += [note for each in results for note in each.notes]
        if others := sorted({each.model for each in results if each.model not in ("", model)}):
            notes.append(f"{name}: its files name the model {', '.join(others)}")
        if name != baseline:
            notes += differences(name, results, baseline, found[baseline])
    record = StudyRecord(
        study_id=hex_digest(list(runs))[:12],
        title=model,
        experiments=tuple(run.experiment for run, _ in runs.values()),
        baselines={_model_use(model).digest: baseline},
        notes=tuple(map(_shown, dict.fromkeys(notes))),
        started_at=now,
        margins=margins,
    )
    store = store if isinstance(store, Store) else Store(store)
    for run, each in runs.values():
        if store.readable(run.run_id) is None:
            partial = store.begin()
            store.keep(run, partial, {}, each.result.prompts)
            store.commit(run, partial, {each.task: each.result.samples})
    store.write_study(record.study_id, record.to_json())
    return Comparison.of(record, store)


def _shown(text: str) -> str:
    return blank_secrets(visible(text))


def _model_of(results: Sequence[Imported], baseline: str) -> str:
    name = next((each.model for each in results if each.model), "")
    if not name:
        raise OptionError(f"the files of {baseline} do not name the model", hint="Give its name: --model NAME.")
    return name


def _model_use(model: str) -> ModelUse:
    return ModelUse(model, f"{_PLUGIN}:{model}")


def _run(model: str, name: str, each: Imported, label: str, now: str) -> Run:
    variant = Variant(_model_use(model), PluginUse(_PLUGIN, _VERSION, {"files": each.digest, "name": name}, name))
    evaluator = PluginUse(f"{_PLUGIN} {each.program}", _VERSION, {"task": each.task, **each.protocol}, label)
    return Run(
        Experiment(variant, evaluator, None, 0),
        "completed",
        tuple(each.result.measurements),
        None,
        {"imported_from": each.program, "packages": dict(each.packages), "evaluated_at": each.evaluated_at},
        now,
        now,
        {each.task: each.result.details},
    )


def _key(each: Imported) -> tuple[str, str, str]:
    return each.program, each.task, digest_of(each.protocol)


def _labels(results: Sequence[Imported]) -> dict[tuple[str, str, str], str]:
    """Write evaluators like calls; of a task with several protocols, with the settings that differ."""
    protocols: dict[tuple[str, str], dict[str, Mapping[str, Json]]] = {}
    for each in results:
        protocols.setdefault((each.program, each.task), {})[digest_of(each.protocol)] = each.protocol
    found = {}
    for (program, task), alike in protocols.items():
        keys = {key for one in alike.values() for key in one if any(one[key] != two.get(key) for two in alike.values())}
        for digest, protocol in alike.items():
            options = {key: value for key, value in protocol.items() if key in keys}
            found[program, task, digest] = str(Call(program, (task,), options))
    return found
