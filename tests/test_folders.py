"""One rule says which files of a folder count, wherever the folder is read, sent or copied."""

from __future__ import annotations

import os
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmquant.errors import ModelError, OptionError, RunError
from llmquant.evaluators.page_set import pages as local_set_pages
from llmquant.evaluators.page_set.pages import list_pages
from llmquant.executors.local.executor import LocalExecutor
from llmquant.executors.modal import volume as modal_volume
from llmquant.executors.shipping import _copy_folder
from llmquant.models import folder as checkpoint_files
from llmquant.models.folder import file_digest, folder_digest
from llmquant.planning.resolve import resolve
from llmquant.plugins.options import verify_inputs
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.experiment import InputFile, InputFolder
from llmquant.study.folders import list_files
from llmquant.study.study import Study

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Übersicht é.txt") for form in ("NFC", "NFD"))


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Three pages, one of them in a linked folder and one linked itself, beside what an editor leaves."""
    folder, elsewhere = tmp_path / "pages", tmp_path / "elsewhere"
    for path in (folder / ".ipynb_checkpoints", folder / "part", elsewhere / ".git"):
        path.mkdir(parents=True)
    for path in (folder / "a.txt", elsewhere / "b.txt", tmp_path / "c.txt"):
        path.write_text(f"the page {path.name}")
    for path in (folder / ".ipynb_checkpoints" / "a-checkpoint.txt", folder / "._a.txt", elsewhere / ".git" / "d.txt"):
        path.write_text("not a page")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "part" / "c.txt").symlink_to(tmp_path / "c.txt")
    return folder


def test_hidden_files_do_not_count_and_links_are_what_they_lead_to(pages: Path):
    """A page set is what a person sees in the folder, in one order."""
    assert list(list_files(pages)) == ["a.txt", "linked/b.txt", "part/c.txt"]
    assert [page.id for page in list_pages(pages, "pages", 150)[0].pages] == list(list_files(pages))


def test_a_folder_is_the_same_where_it_was_sent(pages: Path, tmp_path: Path):
    """A copy for another machine has the digest, the documents and the bytes of the folder."""
    sent = tmp_path / "sent"
    _copy_folder(pages, sent)
    assert InputFolder.read(sent).digest == InputFolder.read(pages).digest
    assert list(list_files(sent)) == list(list_files(pages))
    assert [path for path in sent.rglob("*") if path.is_symlink() or path.name.startswith(".")] == []
    assert modal_volume.size(pages) == modal_volume.size(sent) == sum(len(f.read_bytes()) for f in sent.rglob("*.txt"))


def test_a_checkpoint_is_the_same_where_it_was_sent(tmp_path: Path):
    """What an editor or macOS left beside its files is in neither digest."""
    for name in ("config.json", "._config.json", "1_Pooling/config.json", "1_Pooling/.hidden.json"):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    _copy_folder(tmp_path / "model", tmp_path / "sent")
    here, there = (folder_digest(tmp_path / name, (), tmp_path / "digests") for name in ("model", "sent"))
    assert here == there
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("[]")
    assert folder_digest(tmp_path / "model", (), tmp_path / "digests") != here


def test_a_name_is_the_same_in_both_forms_of_unicode(tmp_path: Path):
    """MacOS writes the same name in other bytes: same digest, same page, found by queries in either form."""
    for folder, name in ((tmp_path / "linux", COMPOSED), (tmp_path / "mac", DECOMPOSED)):
        folder.mkdir()
        (folder / name).write_text("a page")
    assert InputFolder.read(tmp_path / "mac").digest == InputFolder.read(tmp_path / "linux").digest
    names = list_pages(tmp_path / "mac", "mac", 150)[0].names()
    assert {local_set_pages.resolve(name, names) for name in (COMPOSED, DECOMPOSED, f"./{DECOMPOSED}")} == {COMPOSED}


def test_files_are_listed_folder_by_folder(tmp_path: Path):
    """The order depends on no locale and on no file system."""
    for name in ("b/x.txt", "b-1.txt", "B.txt", "a/z/y.txt", "ä.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(list_files(tmp_path)) == ["B.txt", "a/z/y.txt", "b/x.txt", "b-1.txt", "ä.txt"]


def _cycle(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "back").symlink_to(folder)


def _two_spellings(folder: Path) -> None:
    for name in (COMPOSED, DECOMPOSED):
        (folder / name).touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cycle, "a link to a folder that contains the link"),
        (lambda folder: (folder / "loop").symlink_to("loop"), "cannot read .*loop"),
        (lambda folder: (folder / "gone").symlink_to("nowhere"), "broken link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "neither a file nor a folder"),
        (lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).touch(), "not UTF-8"),
        (_two_spellings, "the same name"),
    ],
)
def test_what_cannot_be_read_the_same_everywhere_is_refused(tmp_path: Path, spoil, message: str):
    """It is named, rather than left out on one machine and read on another."""
    (tmp_path / "a.txt").write_text("a page")
    spoil(tmp_path)
    with pytest.raises(OptionError, match=message) as caught:
        InputFolder.read(tmp_path)
    str(caught.value).encode()


def test_what_is_hidden_may_be_anything(tmp_path: Path):
    """Locks and sockets of editors are no reason to refuse a folder."""
    (tmp_path / "a.txt").write_text("a page")
    (tmp_path / ".#lock").symlink_to("user@host:123")
    os.mkfifo(tmp_path / ".pipe")
    assert list(list_files(tmp_path)) == ["a.txt"]


def test_a_pipe_is_no_input(tmp_path: Path):
    """It would give its content once: refused, rather than waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match="regular file"):
        InputFile.read(tmp_path / "pipe")


def test_an_input_with_a_name_that_is_not_utf_8_is_refused(tmp_path: Path):
    """No worker could be told where it is."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("a text")
    with pytest.raises(OptionError, match=r"caf\\udce9\.txt has a name that is not UTF-8"):
        InputFile.read(path)


@dataclass(frozen=True)
class Options:
    text: InputFile
    several: tuple[InputFile, ...]


def test_inputs_are_verified_on_the_worker(pages: Path, tmp_path: Path):
    """A file or a folder that is not what the study was planned with is an error, on whichever machine."""
    text = tmp_path / "text.txt"
    text.write_text("as planned")
    options = Options(InputFile.read(text), (InputFolder.read(pages),))
    inputs = {options.text.digest: text, options.several[0].digest: pages}
    verify_inputs(options, inputs)
    (tmp_path / "elsewhere" / "b.txt").write_text("changed")
    with pytest.raises(RunError, match="pages is not what the study was planned with"):
        verify_inputs(options, inputs)
    text.write_text("changed")
    with pytest.raises(RunError, match=r"text\.txt is not what"):
        verify_inputs(options, inputs)


# -- large files, whose digests are remembered ------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and as not just written."""
    monkeypatch.setattr(checkpoint_files, "_REMEMBERED_BYTES", 0)
    monkeypatch.setattr(checkpoint_files, "_SETTLED_NS", 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one checkpoint")
    return path


def test_other_weights_copied_over_with_their_times_are_seen(large: Path, tmp_path: Path):
    """``cp -a`` and ``touch -r`` keep size, inode and time of change; the content is read all the same."""
    digests, before = tmp_path / "digests", large.stat()
    first = file_digest(large, digests)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"two checkpoint")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.copy2(other, large)
    after = large.stat()
    assert (after.st_size, after.st_ino) == (before.st_size, before.st_ino)
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(large, digests) == file_digest(other, digests) != first


def test_a_file_that_was_just_written_is_not_remembered(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Within the steps of the file system's clock a second change leaves no trace."""
    monkeypatch.setattr(checkpoint_files, "_SETTLED_NS", 10**15)
    file_digest(large, tmp_path / "digests")
    assert not list(tmp_path.glob("digests/*"))


def test_fresh_reads_weights_again(large: Path, tmp_path: Path):
    """What is remembered is forgotten, however the files look."""
    cache = Cache(tmp_path / "cache")
    right = file_digest(large, cache.digests)
    (record,) = cache.digests.iterdir()
    record.write_text(record.read_text().replace(right, "sha256:wrong"))
    assert file_digest(large, cache.digests) == "sha256:wrong"
    with pytest.raises(ModelError, match="nowhere"):
        resolve(Study.of("./nowhere"), registry(), cache, LocalExecutor(device="cpu"), fresh=True)
    assert file_digest(large, cache.digests) == right
