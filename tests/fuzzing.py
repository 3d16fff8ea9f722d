"""Things that are nearly right: damaged stores, study files and calls of plugins, as strategies of hypothesis."""

from __future__ import annotations

import json
import os
import shutil
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from llmquant.storage.journal import JobRecord
from llmquant.storage.store import Store, write_json
from llmquant.study.experiment import Documents, Experiment, ModelUse, PluginUse, Variant, VectorForm
from llmquant.study.job import Job
from llmquant.study.run import Failure, Measurement
from made_up import BASELINE, HARDWARE, MadeUpStudy, completed, experiment, latency, memory, perplexity, scored

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**18, 2**63, -(2**63), 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -0.0, 1.5]),
    st.floats(),
    st.sampled_from(["", "nan", "inf", "no", "null", "1", "1.0", "true", "../..", "/etc/passwd", "a" * 3000, "\ud800"]),
    st.sampled_from(["\x1b[31m", "\x00", "<script>", "=1+1", "|a|", "[x](y)", "\n\n# a", "٣", "²", "𝟙", "\u202e"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
# What JSON can hold.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
DEEP = st.integers(20, 3000)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# -- stores ------------------------------------------------------------------------------------------------------------


def whole_store(root: Path) -> Store:
    """Write a small store that has some of everything."""
    store, study = Store(root), MadeUpStudy(notes=["a note"], started_at="2026-11-20T09:00:00.000+00:00")
    embedder = ModelUse("bigemma3", "sha256:" + "a" * 64, (), PluginUse("llmquant/bigemma3", "1", {}, "bigemma3"))

    def retriever(label: str, form: VectorForm) -> Experiment:
        use = PluginUse("llmquant/baseline", "1", {}, label)
        evaluator = PluginUse("llmquant/mteb", "1", {"tasks": ["DocVQA"]}, "mteb(DocVQA)")
        return Experiment(Variant(embedder, use, form), evaluator, Documents(5), 0)

    for label, wrong in ((BASELINE, 0), ("nf4", 2)):
        mean, samples = scored("coqa", "f1", [0.0] * wrong + [1.0] * (8 - wrong))
        study.add(completed(experiment(label, "lm_eval(coqa)"), mean), {"coqa": samples})
        values, windows = perplexity([3.0, 2.0 + wrong], [2, 2])
        study.add(completed(experiment(label, "perplexity"), *values), {"perplexity": windows})
        study.add(completed(experiment(label, "memory", hardware=HARDWARE), *memory(9, 1, 9, 9, 9)))
        study.add(completed(experiment(label, "latency", hardware=HARDWARE), *latency({8: 1.0, 16: 2.0}, 3.0)))
    died = completed(experiment("gptq", "lm_eval(coqa)"))
    study.add(replace(died, status="failed", failure=Failure("error", "it broke", "Traceback")))
    study.add(experiment("awq", "lm_eval(coqa)"))
    for form in (VectorForm(), VectorForm(256, "int8", rescore=4)):
        mean, samples = scored("DocVQA", "ndcg_at_5", [0.5, 0.25, 1.0])
        size = Measurement("DocVQA", "vector_bytes_per_document", 1024, "bytes", higher_is_better=False)
        run = completed(retriever(BASELINE, form), mean, size)
        study.add(replace(run, details={"DocVQA": {"failures": "failures/DocVQA.json"}}), {"DocVQA": samples})
    for run in study.runs.values():
        partial = store.begin()
        if "DocVQA" in run.details:
            (partial / "files" / "failures").mkdir()
            found = [{"id": "p1", "score": 0.5, "grade": 0, "thumbnail": "a.webp"}]
            query = {"query": "q", "score": 0.5, "found": found, "missed": [{"id": "p2", "grade": 1, "rank": None}]}
            kept = {"task": "DocVQA", "metric": "ndcg_at_5", "queries": [query]}
            (partial / "files" / "failures" / "DocVQA.json").write_text(json.dumps(kept))
            (partial / "files" / "failures" / "a.webp").write_bytes(b"RIFF")
        store.commit(run, partial, study.samples.get(run.run_id, {}))
    record = study.record
    store.write_study(record.study_id, record.to_json())
    number, path = store.new_job(record.study_id)
    job = Job(
        record.study_id,
        number,
        record.experiments[0].variant.model.to_json(),
        tuple((e.to_json(), 1) for e in record.experiments[:4]),
        executor="elsewhere",
    )
    write_json(path, JobRecord(job, "id", dollars=1.5).to_json())
    lines = [{"event": "started", "at": 1.0, "run_id": record.experiments[0].run_id}, {"event": "end", "at": 2.0}]
    path.with_suffix(".journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return store


@st.composite
def changed_json(draw: st.DrawFn, data: Any) -> Any:
    """Change one place of a JSON value: another value, a key less or more, one given elsewhere."""
    places = list(_places(data))
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["value", "value", "value", "delete", "add", "swap", "wrap"]))
    if how == "value":
        holder[key] = draw(VALUES)
    elif how == "delete":
        del holder[key]
    elif how == "wrap":
        holder[key] = [holder[key]] if draw(st.booleans()) else {"a": holder[key]}
    elif how == "swap":
        other, at = draw(st.sampled_from(places))
        holder[key] = json.loads(json.dumps(other[at]))
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=6))] = draw(VALUES)
    else:
        holder.append(draw(VALUES))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(data.items()) if isinstance(data, dict) else list(enumerate(data)):
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut, repeat or overwrite some of a file."""
    at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
    how = draw(st.sampled_from(["cut", "put", "over", "repeat", "all"]))
    if how == "cut":
        return data[:at]
    if how == "repeat":
        return data[:at] + data[at : at + length] * draw(st.integers(2, 50)) + data[at + length :]
    if how == "all":
        return draw(st.sampled_from([b"", b"\xff\xfe", b"\x00" * 99, b"null", b"[]", nested(draw(DEEP)).encode()]))
    new = draw(st.binary(min_size=1, max_size=8))
    return data[:at] + new + data[at + (len(new) if how == "over" else 0) :]


@st.composite
def damage(draw: st.DrawFn, root: Path) -> None:
    """Damage a store in one place."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    path = draw(st.sampled_from(files))
    hows: list[Callable[[], object]] = [lambda: path.write_bytes(draw(changed_bytes(path.read_bytes())))]
    if path.suffix == ".json":
        hows += [lambda: _change_json(draw, path)] * 12
    if path.suffix == ".parquet":
        hows += [lambda: _change_table(draw, path)] * 3
    hows += [lambda: _change_file(draw, path, files)] * 2
    draw(st.sampled_from(hows))()


def _change_json(draw: st.DrawFn, path: Path) -> None:
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError):  # it was damaged before
        return
    if isinstance(data, dict | list) and data:
        path.write_text(json.dumps(draw(changed_json(data))))


def _change_table(draw: st.DrawFn, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path).to_pydict()
    except (pa.ArrowException, OSError, ValueError):  # it was damaged before
        return
    names = draw(st.sampled_from(sorted(columns)))
    count = len(columns[names])
    kind = draw(st.sampled_from([pa.string(), pa.float64(), pa.int64(), pa.binary(), pa.list_(pa.string()), None]))
    examples = {pa.string(): "x", pa.float64(): float("nan"), pa.int64(): -1, pa.binary(): b"\xff"}
    columns.pop(names)
    if kind is not None:
        value = draw(st.sampled_from([None, examples.get(kind, ["a"])]))
        columns[draw(st.sampled_from([names, "score:", "score:f1", "extra"]))] = pa.array([value] * count, kind)
    pq.write_table(pa.table(columns), path)


def _change_file(draw: st.DrawFn, path: Path, files: list[Path]) -> None:
    how = draw(st.sampled_from(["delete", "folder", "link", "loop", "pipe", "move", "copy", "parent", "reading"]))
    if how == "parent":
        shutil.rmtree(path.parent)
        path.parent.write_text("no folder")
        return
    if how == "copy":
        path.write_bytes(draw(st.sampled_from(files)).read_bytes())
        return
    if how == "move":
        name = draw(st.sampled_from(["²", "1-2", "x\ny", "a" * 200, "\x1b[31m", "-1", "0", "%00", "\udcff"]))
        path.rename(path.with_name(name + path.suffix))
        return
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to(draw(st.sampled_from(["/etc/hostname", "/nowhere", "/dev/zero", "/"])))
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "pipe":
        os.mkfifo(path)


# -- study files -------------------------------------------------------------------------------------------------------

_CALLS = ["bf16_baseline", "bnb_4bit(quant_type=fp4)", "lm_eval(coqa, limit=3)", "x(", "a(b=1,b=2)", "a(=)", "(", "a(]"]
_NAMED = st.fixed_dictionaries({"name": st.sampled_from(_CALLS) | LEAVES}, optional={"bits": VALUES, "dtype": VALUES})
_MODEL = st.sampled_from(["./m", "org/name@main", "m.gguf"]) | st.fixed_dictionaries(
    {"source": st.sampled_from(["./m"]) | LEAVES},
    optional={"trust_remote_code": st.booleans() | LEAVES, "allow_pickle": LEAVES, "trust": LEAVES},
)
_AXIS = st.lists(st.integers(1, 9) | st.sampled_from(["int8", "float16"]) | LEAVES, max_size=2)
STUDIES = st.fixed_dictionaries(
    {"models": st.lists(_MODEL | VALUES, max_size=2) | VALUES},
    optional={
        "schema": st.just(1) | LEAVES,
        "quantizers": st.lists(st.sampled_from(_CALLS) | _NAMED | VALUES, max_size=3) | VALUES,
        "evaluators": st.lists(st.sampled_from(_CALLS) | _NAMED, max_size=3),
        "vectors": st.dictionaries(st.sampled_from(["dims", "codecs", "pools", "rescores", "x"]), _AXIS) | VALUES,
        "baseline": st.just("bf16_baseline") | LEAVES,
        "limit": st.just("all") | st.integers(1, 9) | LEAVES,
        "seed": st.integers(0, 9) | LEAVES,
        "modles": VALUES,
    },
)
_TOKENS = """
no 12:30 0x10 1_000 010 .inf 2019-05-01 &a *a !!str !!python/name:os.system <<: ~ 1e5 - ? : [ ] { } # , | >
"""


@st.composite
def study_texts(draw: st.DrawFn) -> tuple[str, bytes]:
    """Write a study as TOML, YAML or JSON, and put something in between now and then."""
    data, ending = draw(STUDIES), draw(st.sampled_from(["toml", "yaml", "json"]))
    text = json.dumps(data)
    if ending == "yaml":
        text = yaml.safe_dump(data) if draw(st.booleans()) else text
    elif ending == "toml":
        text = "".join(f"{key} = {_toml(value)}\n" for key, value in data.items())
    how = draw(st.sampled_from(["whole", "whole", "token", "twice", "deep", "bytes"]))
    if how == "token":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(_TOKENS.split())) + text[at:]
    elif how == "twice":
        text = text + "\n" + text if ending != "json" else text[:-1] + "," + text[1:]
    elif how == "deep":
        text = text.replace("1", nested(draw(DEEP)), 1)
    raw = text.encode("utf-8", "surrogatepass")
    return ending, draw(changed_bytes(raw)) if how == "bytes" else raw


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(json.dumps(value), json.dumps(value))


# -- calls -------------------------------------------------------------------------------------------------------------

_BARE = st.text(string.ascii_lowercase + string.digits + "._/-", min_size=1, max_size=8)
_PLAIN = """
true false null nan -1 0 1 8 1.5 1e400 [1,2] [a,b] {} ( ) [[ ~nobody/x /dev/zero /dev/null / . text.txt bfloat16 coqa
ViDoRe(v1) cuda cpu * ٣ 2019-05-01 org/name@x "" "a "2019" {"a":1,"a":2} {"max_gen_toks":32} {"digest":"a","name":"b"}
{"digest":[],"name":{}}
"""
_WORDS = [*_PLAIN.split(), "\x00", "\ud800", "a" * 300, "a" * 5000, "9" * 5000]


@st.composite
def calls(
    draw: st.DrawFn, names: list[str], fields: Callable[[str], list[str]], values: Callable[[str, str], list[str]]
):
    """Write a call of a plugin, its options nearly right.

    Args:
        fields: gives a plugin's options.
        values: gives right values of an option.
    """
    name = draw(st.sampled_from(names))
    known = fields(name)
    parts = draw(st.lists(st.sampled_from(_WORDS) | _BARE, max_size=1))
    for option in draw(st.lists(st.sampled_from(known) if known else _BARE, max_size=4, unique=True)):
        right = values(name, option)
        value = draw(st.one_of(*([st.sampled_from(right)] * 3 if right else []), st.sampled_from(_WORDS), _BARE))
        parts.append(f"{option}={value}")
    if draw(st.integers(0, 9)) == 0:
        parts.insert(draw(st.integers(0, len(parts))), draw(st.text(max_size=6)))
    return f"{name}({', '.join(parts)})"
