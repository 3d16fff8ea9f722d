"""Checkpoints on the Hugging Face Hub: the commit behind a name, headers without the weights, and the download."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.errors import ModelError, first_line
from llmquant.models.folder import Checkpoint, choose_weights, joined, read_checkpoint, read_json
from llmquant.models.headers import TensorInfo, read_header, read_pickle_header, tensor_from_safetensors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TIMEOUT_S = 10.0
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm")


@dataclass(frozen=True)
class HubCheckpoint(Checkpoint):
    """A checkpoint at one commit.

    Attributes:
        commit: 40 hexadecimal digits.
        note: set if the Hub was not reached and the local copy was used.
    """

    commit: str
    note: str = ""


def read_hub(repo: str, revision: str | None, *, allow_pickle: bool) -> HubCheckpoint:
    """Resolve a Hub id and read its configuration and headers; without a network from the local Hugging Face cache.

    Args:
        revision: a branch, tag or commit; ``None`` is ``main``.

    Raises:
        ModelError: if the model does not exist, is gated, is neither reachable nor downloaded, or is unusable.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: httpx's or httpx2's, by version
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        SafetensorsParsingError,
    )

    name = f"{repo}@{revision}" if revision else repo
    try:
        return _read_online(HfApi(library_name="llmquant"), repo, revision, name, allow_pickle=allow_pickle)
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no Hub id: {error}", hint="Write org/name, or ./folder.") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated, and this machine's token may not read it",
            hint=f"Accept its terms at https://huggingface.co/{repo}, then run: hf auth login (or set HF_TOKEN)",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no branch, tag or commit {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no model {repo!r} that this machine may see",
            hint="Check the spelling; for a private one run: hf auth login (or set HF_TOKEN)",
        ) from error
    except LocalEntryNotFoundError as error:  # the connection was lost between two files
        return _read_cached(repo, revision, name, error, allow_pickle=allow_pickle)
    except EntryNotFoundError as error:
        raise ModelError(f"{name} has no config.json; it is not a transformers checkpoint") from error
    except SafetensorsParsingError as error:
        raise ModelError(f"{name} is damaged: {error}") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        return _read_cached(repo, revision, name, error, allow_pickle=allow_pickle)


def _read_online(api: HfApi, repo: str, revision: str | None, name: str, *, allow_pickle: bool) -> HubCheckpoint:
    # This request comes first because it fails at once without a network; a download tries six times in 24 s.
    found = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    # For a name, the client remembers the commit, which a later offline run finds.
    path = Path(api.hf_hub_download(repo, "config.json", revision=revision))
    commit, config = path.parent.name, read_json(path)
    if commit != found.sha:  # somebody pushed in between
        found = api.model_info(repo, revision=commit, files_metadata=True, timeout=_TIMEOUT_S)
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}

    def read(file: str) -> Mapping[str, Any]:  # Any: a JSON object
        return read_json(Path(api.hf_hub_download(repo, file, revision=commit)))

    files = choose_weights(sizes, read, name, allow_pickle=allow_pickle)
    with ThreadPoolExecutor(8) as pool:
        headers = pool.map(lambda file: _read_header(api, repo, file, commit), files)
        tensors = joined(dict(zip(files, headers, strict=True)), read, name)
    return HubCheckpoint(config, tensors, files, sum(sizes[file] for file in files), commit)


def _read_header(api: HfApi, repo: str, file: str, commit: str) -> tuple[TensorInfo, ...]:
    from huggingface_hub import HfFileSystem, try_to_load_from_cache

    local = try_to_load_from_cache(repo, file, revision=commit)
    if isinstance(local, str):
        return read_header(Path(local))
    if not file.endswith(".safetensors"):
        with HfFileSystem().open(f"{repo}@{commit}/{file}", "rb", block_size=2**20) as stream:
            return read_pickle_header(stream, file)
    metadata = api.parse_safetensors_file_metadata(repo, file, revision=commit)
    return tuple(tensor_from_safetensors(name, t.dtype, list(t.shape)) for name, t in metadata.tensors.items())


def _read_cached(repo: str, revision: str | None, name: str, reason: Exception, *, allow_pickle: bool) -> HubCheckpoint:
    """Read an earlier download when the Hub cannot be reached."""
    from huggingface_hub import snapshot_download

    hint = f"Go online once, or copy the model here and give its folder. The Hub was not reached: {first_line(reason)}"
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
        checkpoint = read_checkpoint(folder, name, allow_pickle=allow_pickle)
    except ModelError as error:
        raise ModelError(f"the local copy of {name} is not whole: {error.message}", hint=error.hint or hint) from error
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError is an OSError
        raise ModelError(f"{name} is not in the local Hugging Face cache", hint=hint) from error
    note = f"commit {folder.name[:12]} of the local cache; the Hub was not asked"
    return HubCheckpoint(**vars(checkpoint), commit=folder.name, note=note)


def read_hub_adapter(repo: str, revision: str | None) -> tuple[str, dict[str, Any]] | None:  # Any: a JSON object
    """Return the commit and the ``adapter_config.json`` of a PEFT adapter on the Hub; ``None`` if it is none."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # as above

    offline = False
    try:
        # First, since it fails at once without a network; a download tries again and again, and says so.
        HfApi(library_name="llmquant").model_info(repo, revision=revision, timeout=_TIMEOUT_S)
    except (HTTPError, OSError, ValueError):
        offline = True  # or it does not exist: then it is not in the local cache either
    try:
        path = Path(hf_hub_download(repo, "adapter_config.json", revision=revision, local_files_only=offline))
    except (HTTPError, OSError, ValueError):  # the caller already knows that it is not an ordinary checkpoint
        return None
    return path.parent.name, read_json(path)


def download(repo: str, commit: str, weight_files: tuple[str, ...], *, code: bool, modules: bool = False) -> Path:
    """Download the files that loading needs, once, into the Hugging Face cache.

    Args:
        code: whether to download the checkpoint's Python files too.
        modules: whether to download the folders of sentence-transformers' modules too, such as ``1_Pooling``.

    Raises:
        ModelError: if a file cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # as above

    patterns = [*_TEXT_FILES, *weight_files, *(["*.py"] if code else [])]
    # Folders such as original/ and onnx/ repeat the weights in other formats.
    others = ["[!0-9]*/*", "[0-9][!_]*/*"] if modules else ["*/*"]
    if modules:
        patterns += ["[0-9]_*/*.json", "[0-9]_*/*.safetensors"]
    try:
        folder = snapshot_download(repo, revision=commit, allow_patterns=patterns, ignore_patterns=others)
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{repo} cannot be downloaded: {first_line(error)}",
            hint="Downloaded files are kept. Run the same command again to continue.",
        ) from error
    missing = [name for name in weight_files if not (Path(folder) / name).exists()]
    if missing:
        raise ModelError(f"the local copy of {repo} lacks {missing[0]}", hint="Go online once to fetch it.")
    return Path(folder)


def find_file(repo: str, commit: str, name: str) -> Path | None:
    """Fetch one small file of a checkpoint; ``None`` if it is missing, or offline and not fetched before."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name, revision=commit))
    except EntryNotFoundError:
        return None
