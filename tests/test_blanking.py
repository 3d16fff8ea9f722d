"""What is secret is blanked in what is kept and shown, and nothing else is."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmquant.cli.terminal import Printable
from llmquant.plugins import options as option_types
from llmquant.storage.blanking import blank_secrets
from llmquant.storage.journal import log_tail
from llmquant.storage.store import Store
from llmquant.study.call import Call
from llmquant.study.experiment import InputFile, ModelUse
from llmquant.study.run import Failure, Measurement, Sample
from made_up import BASELINE, completed, experiment, failed

SECRET = "correct horse 7"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("THEIR_API_KEY", SECRET)


@pytest.mark.parametrize("name", ["KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_secret_1", "X-TOKEN"])
def test_a_variables_secret_word_decides(monkeypatch, name):
    """A value is a secret where a whole word of its variable's name says so, in capitals or not."""
    monkeypatch.setenv(name, "opensesame")
    assert blank_secrets("a=opensesame.") == "a=***."


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEY", "SECRETARY", "PASSWORDS", "HOME"])
def test_a_part_of_a_word_is_none(monkeypatch, name):
    """A variable whose name only holds the letters of such a word is no secret."""
    monkeypatch.setenv(name, "opensesame")
    assert blank_secrets("opensesame") == "opensesame"


def test_a_short_value_is_not_blanked(monkeypatch):
    """Seven characters are too few: they stand in other text as well."""
    monkeypatch.setenv("A_TOKEN", "maximum")
    monkeypatch.setenv("B_TOKEN", "12345678")
    assert blank_secrets("maximum 12345678") == "maximum ***"


def test_a_secret_is_found_however_it_is_written(monkeypatch):
    """In an address, in JSON, in a program's text, and a line of several."""
    monkeypatch.setenv("A_PASSWORD", 'p@ss/w"rd\\\n1')
    monkeypatch.setenv("B_KEY", "first line of it\nsecond line of it\n")
    value = 'p@ss/w"rd\\\n1'
    forms = (value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value), html.escape(value))
    for written in (*forms, repr(value), "second line of it"):
        assert "ss" not in blank_secrets(written)
        assert "of it" not in blank_secrets(written)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_secret_of_other_letters_is_found_in_json(monkeypatch, ascii_only):
    """However a program writes JSON."""
    monkeypatch.setenv("A_KEY", 'Schlüssel "7"')
    assert blank_secrets(json.dumps({"a": 'Schlüssel "7"'}, ensure_ascii=ascii_only)) == '{"a": "***"}'


def test_of_two_secrets_the_longer_is_blanked_whole(monkeypatch):
    """A secret that begins with another one leaves no tail."""
    monkeypatch.setenv("A_KEY", "opensesame")
    monkeypatch.setenv("B_KEY", "opensesame-and-more")
    assert blank_secrets("opensesame-and-more") == "***"


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "aB3" * 8,
        "ghp_" + "aB3" * 12,
        "github_pat_11AAAA_" + "aB3" * 12,
        "glpat-aB3-" + "aB3" * 6,
        "sk-proj-" + "aB3_" * 8,
        "ak-" + "aB3" * 7,
        "as-" + "aB3" * 7,
        "xoxb-123456789012-" + "aB3" * 6,
        "AKIA" + "A2" * 8,
        "AIza" + "aB3dE" * 7,
        "Bearer " + "aB3." * 6,
        "nvapi-" + "aB3_" * 12,
        "gsk_" + "aB3" * 12,
        "api_org_" + "aB3" * 12,
        "eyJhbGciOiJIUzI1NiJ9." + "eyJ" + "aB3" * 9 + "." + "aB3_" * 9,
        "authorization: bearer " + "aB3." * 6,
        '"Authorization": "Basic ' + "aB3=" * 6 + '"',
    ],
)
@pytest.mark.parametrize("around", ["{}", "MY_{}", "'{}',", "a={} b", "\n{}\n"])
def test_known_shapes_are_blanked(token, around):
    """A token is found by its shape, also behind a name and an underscore."""
    blanked = blank_secrets(around.format(token))
    assert "aB3" not in blanked
    assert "A2A2" not in blanked
    assert "***" in blanked


@pytest.mark.parametrize(
    ("address", "blanked"),
    [
        ("git+https://me:pass@example.org/x", "git+https://***@example.org/x"),
        ("postgres://me:p@ss@db:5432/x", "postgres://***@db:5432/x"),
        ("http://localhost:8080/a@b", "http://localhost:8080/a@b"),
        ("https://example.org/a:b c@d", "https://example.org/a:b c@d"),
    ],
)
def test_passwords_in_addresses_are_blanked(address, blanked):
    """The user and the password of an address, and nothing where there is none."""
    assert blank_secrets(address) == blanked


@pytest.mark.parametrize(
    "text",
    [
        "task-specific-fine-tuning risk-adjusted-returns-model mask-generation-pipeline",
        "as-yet-unpublished-results break-even-analysis-2024 gas-fired-power-plants",
        "hf_quantizer load_hf_weights_only shelf_life half_precision",
        "bearer of bad news; Bearer bonds; the token is a word; key: value",
        "meta-llama/Llama-3.2-1B bnb_4bit(quant_type=fp4) lm_eval(coqa)",
    ],
)
def test_words_stay(text):
    """What people and programs write is not taken for a token."""
    assert blank_secrets(text) == text


@given(st.text())
def test_blanking_lengthens_nothing_and_twice_is_once(text):
    """A blanked text is no longer than it was, and blanking it again changes nothing."""
    blanked = blank_secrets(text)
    assert len(blanked) <= len(text)
    assert blank_secrets(blanked) == blanked


def _everything_in(folder: Path) -> bytes:
    """Return the names and contents of all files below a folder, tables as text."""
    import pyarrow.parquet as pq

    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.suffix == ".parquet":
            parts.append(json.dumps(pq.read_table(path).to_pylist()).encode())
        elif path.is_file():
            parts.append(path.read_bytes())
    return b"\n".join(parts)


@pytest.mark.parametrize("secret", [SECRET, "hf_" + "aB3" * 8, "https://me:pass%20word@example.org"])
def test_a_stored_run_has_no_secret_anywhere(tmp_path, secret):
    """Answers, targets, details, files and their names, provenance, notes, task names and the model's path."""
    name = "a.json" if "/" in secret else f"a {secret}.json"
    model = ModelUse(f"/models/{secret}/x", "sha256:1")
    asked = experiment(BASELINE, "e", model=model)
    run = completed(asked, Measurement(f"task {secret}", "f1", 0.5))
    run = replace(
        run,
        applied={**run.applied, "note": secret},
        provenance={"remote": [secret], secret: 1},
        details={f"task {secret}": {"failures": name}},
    )
    store = Store(tmp_path)
    partial = store.begin()
    (partial / "files" / name).write_text(json.dumps({"query": secret, "score": 1}))
    (partial / "files" / "b.txt").write_text(f"x {secret} y")
    sample = Sample("d", "p", {"f1": 0.5}, answer=f"it is {secret}", target=secret, group=secret)
    store.keep(run, partial, {}, {"p": f"what is {secret}?"})
    assert store.commit(run, partial, {f"task {secret}": [sample]})
    kept = _everything_in(tmp_path)
    assert b"what is " in kept
    for part in (secret, quote(secret, safe=""), "aB3aB3", "pass%20word", "horse"):
        assert part.encode() not in kept


def test_blanking_changes_no_number_and_no_pair(tmp_path, monkeypatch):
    """Scores, hashes, ids and options are what they were, and a number with the digits of a password stays one."""
    monkeypatch.setenv("A_PASSWORD", "12345678")
    run = completed(experiment(BASELINE, f"lm_eval({SECRET})"), Measurement("t", "f1", 0.12345678))
    run = replace(run, details={"t": {"n": 12345678}})
    store = Store(tmp_path)
    partial = store.begin()
    (partial / "files" / "a.json").write_text('{"score": 0.12345678, "text": "12345678"}')
    sample = Sample("12345678", SECRET, {"f1": 0.5}, answer="12345678 sacks")
    store.commit(run, partial, {"t": [sample]})
    again = store.run(run.run_id)
    assert again.run_id == run.run_id
    assert again.measurements == run.measurements
    assert again.details == {"t": {"n": 12345678}}
    assert store.samples(again)["t"] == [replace(sample, answer="*** sacks")]
    assert json.loads((store.files(again) / "a.json").read_text()) == {"score": 0.12345678, "text": "***"}


def test_files_of_any_ending_are_blanked_and_all_are_kept(tmp_path):
    """A text is known by its content, and two names that differ in their secrets alone stay two."""
    run = completed(experiment(BASELINE, "e"), Measurement("t", "f1", 0.5))
    store = Store(tmp_path)
    files = store.begin() / "files"
    tokens = ["hf_" + letter * 20 for letter in "ab"]
    for token in tokens:
        (files / token).mkdir()
        (files / token / "config.INI").write_bytes(f"token = {token}\r\n".encode())
        (files / f"{token}.err").write_bytes(f"\xe9 {token}".encode("latin-1"))
    tensors = b"\0\1" + tokens[0].encode()
    (files / "reference.safetensors").write_bytes(tensors)
    assert store.commit(run, files.parent, {})
    kept = {str(p.relative_to(store.files(run))): p.read_bytes() for p in store.files(run).rglob("*") if p.is_file()}
    assert kept.pop("reference.safetensors") == tensors
    assert kept == {
        "hf_***/config.INI": b"token = hf_***\r\n",
        "hf_***-2/config.INI": b"token = hf_***\r\n",
        "hf_***.err": b"\xe9 hf_***",
        "hf_***-2.err": b"\xe9 hf_***",
    }


def test_a_failure_is_blanked(tmp_path):
    """The message and the log's tail of a failed run are blanked when it is stored."""
    run = replace(failed(experiment(BASELINE, "e"), "error", ""), failure=Failure("error", SECRET, f"x {SECRET}"))
    store = Store(tmp_path)
    store.commit(run, store.begin(), {})
    assert store.run(run.run_id).failure == Failure("error", "***", "x ***")
    assert log_tail(f"a\n{SECRET}\n") == "a\n***"


@dataclass(frozen=True)
class _Options:
    data: InputFile


def test_labels_and_files_names_are_blanked_before_they_are_used(tmp_path):
    """A file named by a secret has the same content and identity, and another name in labels and stored options."""
    (tmp_path / f"{SECRET}.txt").write_text("x")
    call = Call("e", (str(tmp_path / f"{SECRET}.txt"),))
    options = option_types.build(_Options, call, {})
    assert option_types.label(call, options) == "e(***.txt)"
    assert option_types.dump(options)["data"]["name"] == "***.txt"
    assert options.data.path.is_file()


def test_what_is_logged_on_the_terminal_is_blanked():
    """The log's formatter blanks, tracebacks included."""
    import logging

    try:
        raise ValueError(SECRET)
    except ValueError as error:
        found = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "found %s", (SECRET,), found)
    assert SECRET not in Printable().format(record)
