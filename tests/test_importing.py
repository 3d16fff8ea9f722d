"""Results of lm-eval become a study that is compared like our own runs; what does not fit is refused or named."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzzing import changed_json
from llmquant.errors import OptionError
from llmquant.importers.studies import import_results
from llmquant.results.comparison import Comparison
from llmquant.stats.samples import pair_samples
from llmquant.storage.store import Store
from lm_eval_output import CHOICE_ROWS, noisy, write_output, write_rows
from subjects import load_subject

TRIES = int(os.environ.get("LLMQUANT_FUZZ_TRIES", "0"))
HASHES = ("doc_hash", "prompt_hash", "target_hash")


@pytest.fixture(scope="session")
def outputs(tiny_model, tmp_path_factory):
    """Let lm-eval and our evaluator measure a tiny model, and the same model with noise."""
    import torch

    from llmquant.evaluators.lm_eval.evaluator import LmEval
    from llmquant.evaluators.lm_eval.options import LmEvalOptions
    from llmquant.plugins.context import Context
    from llmquant.plugins.options import build
    from llmquant.storage.cache import Cache
    from llmquant.study.call import Call
    from llmquant.study.experiment import Documents

    torch.set_num_threads(1)
    top = tmp_path_factory.mktemp("lm-eval")
    cache = Cache(top / "cache")
    subject = load_subject(tiny_model, cache)
    rows = write_rows(top / "rows.jsonl", CHOICE_ROWS)
    words = write_rows(top / "words.jsonl", [{"question": row["question"], "answer": "e"} for row in CHOICE_ROWS[:6]])
    options = build(LmEvalOptions, Call.parse(f"lm_eval(arc_easy, data={rows})"))
    context = Context("cpu", 0, Documents(None), cache, {}, None, top, lambda done, total: None)
    found = {}
    for name, noise in (("bf16", 0.0), ("nf4", 0.5)):
        noisy(subject.module, noise)
        (ours,) = LmEval(options).evaluate(subject, context)
        found[name] = write_output(top / name, subject, rows, words), ours
    return found


@pytest.fixture
def edited(outputs, tmp_path):
    """Return a function that copies a folder of lm-eval and changes a task's results and samples."""
    made = []

    def edit(name="bf16", task="arc_easy", *, results=None, samples=None, text=None) -> Path:
        folder = tmp_path / f"{name}-{len(made)}"
        made.append(shutil.copytree(outputs[name][0], folder))
        (file,) = folder.rglob("results_*.json")
        (lines,) = folder.rglob(f"samples_{task}_*.jsonl")
        data = json.loads(file.read_text())
        entries = [json.loads(line) for line in lines.read_text().splitlines()]
        if samples is not None:
            entries = samples(entries)
            together = "".join(entry[key] for entry in entries for key in HASHES)
            data["task_hashes"][task] = _sha256(together)
        if results is not None:
            results(data)
        file.write_text(json.dumps(data))
        lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        if text is not None:
            lines.write_text(text(lines.read_text()))
        return folder

    return edit


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def row_of(found: Comparison, variant: str, metric: str, task: str = ""):
    return next(row for row in found.rows() if (row.variant, row.metric) == (variant, metric) and task in row.task)


def both(bf16, nf4, tmp_path, **options) -> Comparison:
    return import_results([f"bf16={bf16}", f"nf4={nf4}"], baseline="bf16", store=tmp_path / "store", **options)


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_imported_samples_give_the_result_of_our_own_runs(outputs, tmp_path, metric):
    """Difference, interval and number of pairs are those of our evaluator on the same models and documents."""
    (bf16, our_base), (nf4, ours) = outputs["bf16"], outputs["nf4"]
    row = row_of(both(bf16, nf4, tmp_path), "nf4", metric)
    one, other = (next(m for m in result.measurements if m.metric == metric) for result in (ours, our_base))
    wanted = pair_samples(one, other, {"arc_easy": ours.samples}, {"arc_easy": our_base.samples}).difference()
    assert (row.difference, row.difference_low, row.difference_high) == (wanted.value, wanted.low, wanted.high)
    assert (row.pairs, row.pairs_higher, row.pairs_lower) == (wanted.n, wanted.higher, wanted.lower)
    assert (row.value, row.stderr, row.n) == (one.value, one.stderr, one.n)
    assert row.pairs == len(CHOICE_ROWS)


def test_imported_documents_are_those_of_our_own_runs(outputs, tmp_path):
    """Hash, scores, answer, right answer and group of each document are equal; prompts are hashes of text."""
    path, ours = outputs["nf4"]
    found = import_results([path], store=tmp_path / "store")
    (samples,) = [by_task["arc_easy"] for by_task in found.samples().values() if "arc_easy" in by_task]
    for mine, own in zip(samples, ours.samples, strict=True):
        assert (mine.document, mine.scores, mine.answer, mine.target, mine.group) == (
            own.document,
            own.scores,
            own.answer,
            own.target,
            own.group,
        )
    assert {sample.prompt for sample in samples}.isdisjoint(sample.prompt for sample in ours.samples)


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("rolling", "word_perplexity"),
        ("rolling", "byte_perplexity"),
        ("rolling", "bits_per_byte"),
        ("last_word", "perplexity"),
        ("last_word", "acc"),
    ],
)
def test_likelihoods_of_texts_pair(outputs, tmp_path, task, metric):
    """The documents' log-likelihoods add up to lm-eval's value, so that each document is a pair."""
    row = row_of(both(outputs["bf16"][0], outputs["nf4"][0], tmp_path), "nf4", metric, task)
    assert (row.pairs, row.no_interval) == (6, "")
    assert (row.ratio is not None) == ("perplexity" in metric)


def test_equal_likelihoods_of_texts_are_refused(edited, tmp_path):
    """Also where a document has no choices."""

    def none(entries):
        return [{**entry, "filtered_resps": ["0.0"]} for entry in entries]

    with pytest.raises(OptionError, match=r"all 6 log-likelihoods are 0\.0"):
        import_results([edited("nf4", "rolling", samples=none)], store=tmp_path / "store")


def test_prompts_are_stored_as_text(outputs, tmp_path):
    """A sample's prompt is found by its hash, so that a report can show it."""
    import_results([outputs["bf16"][0]], store=tmp_path / "store")
    store = Store(tmp_path / "store")
    samples = [s for run in store.runs().values() for s in store.samples(run).get("arc_easy", ())]
    assert len(samples) == len(CHOICE_ROWS)
    for sample, row in zip(samples, CHOICE_ROWS, strict=True):
        assert row["question"] in (store.prompt(sample.prompt) or "")


def test_filters_are_metrics_of_one_document(outputs, tmp_path):
    """Two filters of six documents are six samples with two scores, each of which pairs once per document."""
    found = both(outputs["bf16"][0], outputs["nf4"][0], tmp_path)
    for filter_name in ("first-word", "any-letter"):
        assert row_of(found, "nf4", f"exact_match,{filter_name}").pairs == 6
    for by_task in found.samples().values():
        for sample in by_task.get("words", ()):
            assert set(sample.scores) == {"exact_match,first-word", "exact_match,any-letter"}


def test_a_study_of_imports_is_stored_and_shown_like_any_other(outputs, tmp_path):
    """The store is read again in every format; importing again reuses the runs."""
    found = both(outputs["bf16"][0], outputs["nf4"][0], tmp_path)
    again = both(outputs["bf16"][0], outputs["nf4"][0], tmp_path)
    assert again.record.study_id == found.record.study_id
    assert len(list((tmp_path / "store" / "runs").iterdir())) == len(found.runs) == 8
    read = Comparison.from_store(tmp_path / "store")
    read.save_json(tmp_path / "study.json")
    assert [row.to_json() for row in Comparison.load(tmp_path / "study.json").rows()] == [
        row.to_json() for row in read.rows()
    ]
    for shown in (read.to_text(), read.to_markdown(), read.to_html(), read.to_csv()):
        assert "tiny/llama" in shown
        assert "nf4" in shown
    assert "llmquant import" in read.to_html()
    assert "study.toml" not in read.to_html()


def test_the_command_prints_the_comparison(outputs, tmp_path):
    """Folders with names, the baseline as a path; nothing heavy is imported."""
    bf16, nf4 = tmp_path / "bf16", tmp_path / "quantized"
    shutil.copytree(outputs["bf16"][0], bf16)
    shutil.copytree(outputs["nf4"][0], nf4)
    probe = f"""
import sys
sys.argv = ["llmquant", "import", {str(bf16)!r}, "nf4={nf4}", "--baseline", {str(bf16)!r}, "--store", "store"]
from llmquant.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print([name for name in ("torch", "lm_eval", "mteb", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "tiny/llama · baseline bf16" in done.stdout
    assert "undecided" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_equal_documents_stay_apart(edited, tmp_path):
    """Documents of one hash are numbered by their place in the task, whatever the order of the lines."""

    def twice(entries):
        entries[4]["doc_hash"] = entries[2]["doc_hash"]
        return entries[::-1]

    found = both(edited("bf16", samples=twice), edited("nf4", samples=twice), tmp_path)
    (base, _) = [by_task["arc_easy"] for by_task in found.samples().values() if "arc_easy" in by_task]
    assert [sample.occurrence for sample in base] == [0, 0, 0, 0, 1, *[0] * (len(CHOICE_ROWS) - 5)]
    assert row_of(found, "nf4", "acc").pairs == len(CHOICE_ROWS)


def test_the_baseline_is_the_first_unless_named(outputs, tmp_path):
    """A note says so; a name that no variant has is an error with the names."""
    bf16, nf4 = (f"{name}={outputs[name][0]}" for name in ("bf16", "nf4"))
    found = import_results([nf4, bf16], store=tmp_path / "store")
    assert set(found.record.baselines.values()) == {"nf4"}
    assert any("nf4 is the baseline" in note for note in found.record.notes)
    with pytest.raises(OptionError, match="no variant is called 'bf17'") as error:
        import_results([nf4, bf16], baseline="bf17", store=tmp_path / "store")
    assert "bf16" in str(error.value)


def test_a_margin_is_for_an_imported_score(outputs, tmp_path):
    """Another one is refused with the scores there are, and nothing is stored."""
    with pytest.raises(OptionError, match="margin is for 'bleu', which is not measured"):
        import_results(f"bf16={outputs['bf16'][0]}", margin="bleu=1", store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_one_variant_alone_has_values_and_no_verdict(outputs, tmp_path):
    """Nothing is compared, and nothing fails."""
    found = import_results([f"bf16={outputs['bf16'][0]}"], store=tmp_path / "store")
    assert {row.verdict for row in found.rows()} == {None}
    assert "38.9" in found.to_text()


def test_the_model_is_asked_for_where_no_file_names_it(edited, tmp_path):
    """lm-eval then writes eight random characters, or nothing."""

    def at_random(data):
        data |= {"model_name": "x7k2p9qa", "config": {**data["config"], "model_args": None}}

    for change in (at_random, lambda data: data.pop("model_name")):
        folder = edited(results=change)
        with pytest.raises(OptionError, match="do not name the model") as error:
            import_results([f"bf16={folder}"], store=tmp_path / "store")
        assert "--model" in error.value.hint
    assert import_results([f"bf16={folder}"], model="org/model", store=tmp_path / "store").record.title == "org/model"


def _chat(data):
    data["chat_template"] = "{{ messages }}"


def _server_chat(data):
    data["chat_template"] = ""


def _version(data):
    data["versions"]["arc_easy"] = 2.0


def _shots(data):
    data["n-shot"]["arc_easy"] = 5


def _system(data):
    data["system_instruction"] = "Be brief."


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        (_chat, r"chat_template sha256:\w+ against none"),
        (_server_chat, "chat_template the server's against none"),
        (_version, "task_version 2.0 against 1.0"),
        (_shots, "num_fewshot 5 against 0"),
        (_system, r"system_instruction sha256:\w+ against none"),
    ],
    ids=["chat", "server-chat", "version", "shots", "system"],
)
def test_different_protocols_never_pair(edited, tmp_path, change, setting):
    """The rows have values only, and a note names the setting and both of its values."""
    found = both(edited("bf16"), edited("nf4", results=change), tmp_path)
    row = row_of(found, "nf4", "acc")
    assert (row.verdict, row.pairs, row.difference) == (None, None, None)
    assert row.value is not None
    said = "\n".join(found.record.notes)
    assert re.search(f"arc_easy.*: nf4 is not compared.*settings differ: {setting}", said)


def test_other_prompts_and_other_right_answers_do_not_pair(edited, tmp_path):
    """Of 18 documents the 15 with equal prompts and answers are compared, and a note says so."""

    def other(entries):
        entries[0]["prompt_hash"] = "0" * 64
        entries[1]["arguments"]["gen_args_2"]["arg_1"] = " a ferry"  # not in lm-eval's hash
        entries[2]["target_hash"] = "0" * 64
        return entries

    found = both(edited("bf16"), edited("nf4", samples=other), tmp_path)
    assert row_of(found, "nf4", "acc").pairs == len(CHOICE_ROWS) - 3
    assert any("3 of 18 prompts or right answers" in note for note in found.record.notes)


def _first_ten(entries):
    return entries[:10]


def _mean(entries, key):
    return math.fsum(entry[key] for entry in entries) / len(entries)


def consistent(count):
    """Return changes of samples and results that keep the first documents, as a run with a limit would."""
    kept = []

    def samples(entries):
        kept[:] = entries[:count]
        return entries[:count]

    def results(data):
        data["n-samples"]["arc_easy"]["effective"] = count
        values = data["results"]["arc_easy"]
        values["sample_len"] = count
        for metric in ("acc", "acc_norm"):
            values[f"{metric},none"] = _mean(kept, metric)
            values[f"{metric}_stderr,none"] = "N/A"

    return {"samples": samples, "results": results}


def test_missing_documents_are_named_and_the_rest_is_compared(edited, tmp_path):
    """A run with a limit is compared with a whole one on the documents of both."""
    found = both(edited("bf16"), edited("nf4", **consistent(10)), tmp_path)
    assert row_of(found, "nf4", "acc").pairs == 10
    assert any("nf4 (10) and bf16 (18) have 10 documents in common" in note for note in found.record.notes)


def test_one_document_gives_no_verdict_of_a_difference(edited, tmp_path):
    """Neither better nor worse can be said from one pair."""
    found = both(edited("bf16", **consistent(1)), edited("nf4", **consistent(1)), tmp_path)
    row = row_of(found, "nf4", "acc")
    assert row.pairs == 1
    assert row.verdict not in ("better", "worse")


def _no_likelihoods(entries):
    for entry in entries:
        entry["filtered_resps"] = [["0.0", "False"]] * len(entry["filtered_resps"])
    return entries


def _another_document(entries):
    return [*entries[:-1], {**entries[-1], "doc_id": entries[0]["doc_id"]}]


def _other_scores(entries):
    return [{**entry, "acc": 1.0} for entry in entries]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": lambda text: text[: len(text) // 2]}, r"line \d+, cannot be read"),
        ({"text": lambda text: text.partition("\n")[0] + "\n"}, "does not have the documents of its results"),
        ({"samples": _first_ten}, "has 10 documents, but the results have 18 of 18"),
        ({"samples": _another_document}, "but the results have 18 of 18"),
        ({"samples": lambda entries: [*entries, entries[0]]}, "has document 0 for the filters 'none', 'none'"),
        ({"results": lambda data: data["n-samples"]["arc_easy"].update(original=3)}, "18 of 3"),
        ({"samples": _no_likelihoods}, r"all 72 log-likelihoods are 0\.0"),
        ({"samples": _other_scores}, "is not the mean of its 18 samples' scores"),
        ({"samples": lambda entries: []}, "has 0 documents"),
        ({"text": lambda text: "[]\n"}, r"line 1, cannot be read: it is \[\]"),
        ({"text": lambda text: "{}\n"}, "line 1 has no doc_id"),
        ({"results": lambda data: data["results"].update(arc_easy="gone")}, "is not as lm-eval writes it"),
        ({"results": lambda data: data.update({"n-shot": 3})}, "is not as lm-eval writes it"),
        ({"results": lambda data: data.update(date=1e300)}, "is not as lm-eval writes it"),
        ({"results": lambda data: data["results"]["arc_easy"].update({"acc,none": 10**400})}, "too large"),
    ],
    ids=[
        "cut",
        "cut-at-a-line",
        "too-few",
        "a-document-twice",
        "a-line-twice",
        "more-than-all",
        "no-likelihoods",
        "other-scores",
        "empty",
        "a-list",
        "a-table",
        "no-values",
        "no-table",
        "no-date",
        "too-large",
    ],
)
def test_files_that_do_not_agree_are_refused(edited, tmp_path, changes, message):
    """The message names the file; nothing is stored."""
    folder = edited(**changes)
    with pytest.raises(OptionError, match=message) as error:
        import_results([f"bf16={folder}"], store=tmp_path / "store")
    assert str(folder) in error.value.message
    assert not (tmp_path / "store").exists()


def test_a_mean_that_is_not_a_number_has_no_verdict(edited, tmp_path):
    """Bare NaN is read, and the row gives a reason."""

    def nan(entries):
        return [{**entry, "acc": math.nan} if entry["doc_id"] == 3 else entry for entry in entries]

    folder = edited("nf4", samples=nan, results=lambda data: data["results"]["arc_easy"].update({"acc,none": math.nan}))
    row = row_of(both(edited("bf16"), folder, tmp_path), "nf4", "acc")
    assert math.isnan(row.value)
    assert row.verdict is None
    assert row.no_interval


def test_half_a_character_and_infinity_in_settings_are_stored(edited, tmp_path):
    """What neither UTF-8 nor JSON holds is written so that the study can be read again."""

    def strange(data):
        data["model_name"] = "org/\ud800"
        data["versions"]["arc_easy"] = math.inf
        data["configs"]["words"]["generation_kwargs"]["until"] = ["\ud83d"]

    found = both(edited("bf16"), edited("nf4", results=strange), tmp_path)
    read = Comparison.from_store(tmp_path / "store")
    assert len(read.runs) == len(found.runs) == 8
    assert "task_version inf against 1.0" in "\n".join(read.record.notes)


def test_results_without_samples_are_values_with_a_reason(edited, tmp_path):
    """A note names the missing file and the option that writes it."""
    folder = edited("nf4")
    next(folder.rglob("samples_arc_easy_*")).unlink()
    found = both(edited("bf16"), folder, tmp_path)
    row = row_of(found, "nf4", "acc")
    assert row.difference is not None
    assert (row.verdict, row.no_interval) == (None, "lm-eval was run without --log_samples")
    assert any("--log_samples" in note for note in found.record.notes)


def _copy_of(folder: Path, date: str, change) -> None:
    """Write a second result of the same model beside the first one."""
    (file,) = folder.rglob("results_*.json")
    data = json.loads(file.read_text())
    change(data)
    (file.parent / f"results_{date}.json").write_text(json.dumps(data))


def test_of_several_results_the_newest_is_imported(edited, tmp_path):
    """A note says which; under different settings the file must be named."""
    folder = edited()
    _copy_of(folder, "2020-01-01T00-00-00.000001", lambda data: None)
    found = import_results([f"bf16={folder}"], store=tmp_path / "store")
    assert row_of(found, "bf16", "acc").n == len(CHOICE_ROWS)
    assert Counter("the newest one is imported" in note for note in found.record.notes)[True] == 4
    next(folder.rglob("results_2020*.json")).unlink()
    (file,) = folder.rglob("results_*.json")
    _copy_of(folder, "2020-01-01T00-00-00.000001", _shots)
    with pytest.raises(OptionError, match="2 results of arc_easy under different settings") as error:
        import_results([f"bf16={folder}"], store=tmp_path / "store")
    assert str(file) in error.value.hint
    assert import_results([f"bf16={file}"], store=tmp_path / "store").runs


def test_a_folder_of_two_models_is_refused(edited, tmp_path):
    """Each is a variant of its own."""
    folder = edited()
    shutil.copytree(edited("nf4"), folder / "again")
    with pytest.raises(OptionError, match="has results of 2 models") as error:
        import_results([f"bf16={folder}"], store=tmp_path / "store")
    assert "NAME=" in error.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results_2026-01-01T00-00-00.json", '{"results": {', "cannot be read"),
        ("results_2026-01-01T00-00-00.json", "[]", "not a result file of lm-eval"),
        ("results_2026-01-01T00-00-00.json", '{"results": {"a": {"acc": 1}}, "versions": {}}', "before 0.4"),
        ("notes.md", "text", "has no results of lm-eval"),
        ("config.json", '{"hidden_size": 64}', "has no results of lm-eval"),
    ],
    ids=["damaged", "a-list", "before-0.4", "text", "a-model"],
)
def test_a_folder_of_something_else_is_refused(tmp_path, name, content, message):
    """With the reason, and what a folder must contain."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(OptionError) as error:
        import_results([folder], model="m", store=tmp_path / "store")
    assert message in str(error.value)


def test_our_own_runs_are_refused_with_the_reason(outputs, tmp_path):
    """Their prompts are identified by token ids, which no file of lm-eval has."""
    both(outputs["bf16"][0], outputs["nf4"][0], tmp_path)
    with pytest.raises(OptionError, match="is a store of llmquant, whose runs do not pair with imported ones"):
        import_results([f"nf4={outputs['nf4'][0]}", f"bf16={tmp_path / 'store'}"], store=tmp_path / "new")


def test_names_of_variants_are_clear(edited, tmp_path):
    """Folders of one name need names; the results of a task belong to one variant once."""
    one, two = (shutil.copytree(edited(), tmp_path / parent / "out") for parent in ("one", "two"))
    with pytest.raises(OptionError, match="would both be the variant 'out'"):
        import_results([one, two], store=tmp_path / "store")
    with pytest.raises(OptionError, match="has results of arc_easy twice"):
        import_results([f"bf16={one}", f"bf16={two}"], store=tmp_path / "store")
    with pytest.raises(OptionError, match="does not exist"):
        import_results([f"bf16={tmp_path}/nowhere"], store=tmp_path / "store")
    with pytest.raises(OptionError, match="gives the variant no name"):
        import_results([f"={one}"], store=tmp_path / "store")


def test_a_copy_is_compared_and_named(outputs, tmp_path):
    """Two variants of the same files are both shown, and a note says that they are one."""
    found = both(outputs["bf16"][0], outputs["bf16"][0], tmp_path)
    row = row_of(found, "nf4", "acc")
    assert (row.difference, row.pairs) == (0, len(CHOICE_ROWS))
    assert any("nf4 are a copy of those of bf16" in note for note in found.record.notes)


def test_other_tokenizers_and_versions_are_named(edited, tmp_path):
    """Prompts pair as text, and notes say what differs."""

    def other(data):
        data |= {"tokenizer_bos_token": ["<s>", "1"], "transformers_version": "4.0", "model_name": "org/tiny-awq"}

    found = both(edited("bf16"), edited("nf4", results=other), tmp_path)
    assert row_of(found, "nf4", "acc").pairs == len(CHOICE_ROWS)
    said = found.to_text(width=400)
    assert "have different tokenizer_bos_token" in said
    assert "transformers 4.0, the baseline" in said
    assert "nf4: its files name the model org/tiny-awq" in said


# Of lm-eval's many keys, those that are read: a change of another one is no test.
_READ = (
    *("results", "versions", "n-shot", "n-samples", "higher_is_better", "group_subtasks", "date", "model_name"),
    *("model_source", "chat_template", "system_instruction", "fewshot_as_multiturn", "task_hashes", "lm_eval_version"),
)


@settings(
    max_examples=TRIES or 12,
    derandomize=not TRIES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
@given(data=st.data())
def test_a_damaged_value_ends_in_a_study_or_in_one_error(outputs, data):
    """Whatever one place of the results or of a line holds: one error, or a study that is shown."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(outputs["nf4"][0], Path(scratch) / "out"))
        (results,) = folder.rglob("results_*.json")
        (samples,) = folder.rglob("samples_arc_easy_*.jsonl")
        lines = samples.read_text().splitlines(keepends=True)
        found = json.loads(results.read_text())
        kept = {key: found[key] for key in _READ if key in found}
        kept["config"] = {"model_args": "pretrained=tiny/llama", "limit": None}
        keys = ("output_type", "metric_list", "generation_kwargs")
        kept["configs"] = {
            task: {key: config[key] for key in keys if key in config} for task, config in found["configs"].items()
        }
        if data.draw(st.booleans()):
            del kept["task_hashes"]
        if data.draw(st.integers(0, 2)):
            kept = data.draw(changed_json(kept))
        else:
            at = data.draw(st.integers(0, len(lines) - 1))
            lines[at] = json.dumps(data.draw(changed_json(json.loads(lines[at])))) + "\n"
        results.write_text(json.dumps(kept))
        samples.write_text("".join(lines))
        with suppress(OptionError):
            both(outputs["bf16"][0], folder, Path(scratch))
            read = Comparison.from_store(Path(scratch) / "store")
            assert len(read.runs) == len(read.record.experiments)
            assert read.to_text()
