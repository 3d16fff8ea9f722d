"""Models of sentence-transformers, for texts and, if the model supports them, images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from llmquant.embedders.sentence_transformers.options import SentenceTransformersOptions
from llmquant.errors import ModelError
from llmquant.loading.memory import is_out_of_memory
from llmquant.loading.strict import HEAD, check_strict
from llmquant.loading.token_rows import fit_tokens
from llmquant.models.headers import read_safetensors_header
from llmquant.models.info import FLOATS
from llmquant.plugins.embedder import Embedder, Prepared

if TYPE_CHECKING:
    import numpy as np
    from mteb.abstasks.task_metadata import TaskMetadata
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.study.embedding import Role

# What wrong files make sentence-transformers raise.
_FAULTS = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, SafetensorError)
# Layers that an encoder was trained with but does not need: they do not affect pooled token states.
_UNUSED = (HEAD, r"(.*\.)?(pooler|cls|classifier|mlm_head|vocab_\w+)\..*", r"(.*\.)?position_ids")
# The names that sentence-transformers looks for, in its order.
_PROMPT_NAMES: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_POSITIONS = ("position_embeddings.weight", "wpe.weight")
_IMAGE_TOKENS = 1024
_LETTERS_PER_TOKEN = 4


class SentenceTransformers(Embedder[SentenceTransformersOptions]):
    """Opens a sentence-transformers model."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenSentenceTransformers:
        """Load all modules; the quantizer's keywords go to the transformer."""
        model = load(path, info, load_kwargs, ctx)
        options = self.options
        prompts = {"query": options.query_prompt, "document": options.document_prompt}
        return OpenSentenceTransformers(model, prompts, normalized=options.info(info).similarity == "cosine")


def load(path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> SentenceTransformer:
    """Load a model from local files only.

    Raises:
        ModelError: if the model cannot be loaded, or tensors are missing or unexpected.
    """
    safetensors = None if info.allow_pickle else True
    _check_modules(path, info.source)
    with _loading_reports() as reports:
        try:
            model = SentenceTransformer(
                str(path),
                device=ctx.device,
                trust_remote_code=info.trust_remote_code,
                local_files_only=True,
                model_kwargs={**load_kwargs, "device_map": {"": ctx.device}, "use_safetensors": safetensors},
            )
        except _FAULTS as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"sentence-transformers cannot load {info.source}: {error}") from error
    for report in reports:
        missing = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
        check_strict({**report, "missing_keys": missing}, info.source, allowed=_UNUSED)
    if hasattr(model[0], "auto_model") and "vision_config" not in info.config:  # a text encoder has one embedding
        fit_tokens(model[0].auto_model, model.tokenizer, info.source)
    positions = next((t.shape[0] for t in info.tensors if t.name.endswith(_POSITIONS)), None)
    if positions is not None and (model.max_seq_length or 0) > positions:
        raise ModelError(
            f"{info.source} declares that it reads {model.max_seq_length} tokens, but it has {positions} positions",
            hint="Correct max_seq_length in its sentence_bert_config.json.",
        )
    if positions is not None:
        model.tokenizer.padding_side = "right"  # on the left, padding would move a text to other positions
    dtype = load_kwargs.get("dtype")
    if dtype is not None:
        for module in list(model)[1:]:  # these modules take no keywords, and must fit the transformer's states
            module.to(dtype=dtype)
    return model.eval()


def _check_modules(path: Path, source: str) -> None:
    """Refuse modules that sentence-transformers would ignore, or whose codes it would read as numbers."""
    modules = sorted(path.glob("[1-9]*_*/config.json"))
    if modules and not (path / "modules.json").is_file():
        raise ModelError(
            f"{source} has the module {modules[0].parent.name}, but modules.json is missing",
            hint="Fetch modules.json again.",
        )
    for file in sorted(path.glob("[1-9]*_*/*.safetensors")):
        if codes := [tensor for tensor in read_safetensors_header(file) if tensor.dtype not in FLOATS]:
            raise ModelError(
                f"{source} stores {codes[0].name!r} of {file.parent.name} as {codes[0].dtype}, and no file "
                "explains these codes",
                hint="Use the unquantized checkpoint.",
            )


@contextmanager
def _loading_reports() -> Iterator[list[Mapping[str, Any]]]:  # Any: transformers' loading report
    """Collect transformers' report on each model that sentence-transformers loads without requesting a report."""
    original = PreTrainedModel.__dict__["from_pretrained"]
    reports: list[Mapping[str, Any]] = []

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:  # Any: transformers
        wanted = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = original.__func__(cls, *args, **{**kwargs, **wanted})
        reports.append(report)
        return model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield reports
    finally:
        PreTrainedModel.from_pretrained = original


class OpenSentenceTransformers:
    """A sentence-transformers model on its device.

    Args:
        prompts: prompts by role; ``None`` is the model's own prompt.
        normalized: whether vectors are scaled to unit length.
    """

    def __init__(self, model: SentenceTransformer, prompts: Mapping[str, str | None], *, normalized: bool) -> None:
        self.module, self._normalized = model, normalized
        self._given = {role for role, prompt in prompts.items() if prompt is not None}
        # Not None for a role, because a model's default prompt belongs to neither role.
        self._prompts: dict[str, str | None] = {
            role: next(filter(None, map(model.prompts.get, _PROMPT_NAMES[role])), "") if prompt is None else prompt
            for role, prompt in prompts.items()
        }
        self._sides = True

    def for_task(self, task: TaskMetadata, role: Role | None) -> tuple[OpenSentenceTransformers, str]:
        """Use the model's prompt for a task or its type, as mteb does, unless the role's prompt was given.

        An item without a role gets no role's prompt, and its vector keeps its length.
        """
        names = [f"{task.name}-{role}", task.name, f"{task.type}-{role}", task.type]
        named = next((name for name in names if name in self.module.prompts), None)
        if role is not None and (named is None or role in self._given):
            return self, ""
        other = copy.copy(self)
        other._prompts = dict.fromkeys(_PROMPT_NAMES, None if named is None else self.module.prompts[named])
        other._sides, other._normalized = role is not None, self._normalized and role is not None
        return other, f"{role} {named}"

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Return the item unchanged, because in `embed` the model processes whole batches."""
        if image is not None:
            return Prepared(_IMAGE_TOKENS, image)
        length = 1 + len(text or "") // _LETTERS_PER_TOKEN
        return Prepared(min(length, self.module.max_seq_length or length), text)

    def too_long(self, text: str, role: Role) -> bool:
        """Return whether a text has more tokens than the model reads, so that its end has no effect."""
        limit, whole = self.module.max_seq_length, (self._prompts[role] or "") + text
        if limit is None or len(whole.encode()) < limit // 2:  # special tokens, of which there are few, have no bytes
            return False
        return bool(len(self.module.tokenizer(whole, truncation=False, verbose=False)["input_ids"]) > limit)

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch with the role's prompt, as ``encode_query`` and ``encode_document`` do."""
        found: dict[int, NDArray[np.float32]] = {}
        for texts in (True, False):  # a model processes one kind of item at a time
            numbers = [i for i, item in enumerate(batch) if isinstance(item.inputs, str) is texts]
            if numbers:
                vectors = self._encode([batch[i].inputs for i in numbers], role)
                found.update(zip(numbers, vectors, strict=True))
        return [found[i] for i in range(len(batch))]

    def _encode(self, inputs: Sequence[Any], role: Role) -> NDArray[np.float32]:  # Any: texts or images
        vectors = self.module.encode(
            list(inputs),
            prompt=self._prompts[role],
            task=role if self._sides else None,
            batch_size=len(inputs),
            show_progress_bar=False,
            convert_to_tensor=True,
        ).float()
        if self._normalized:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        found: NDArray[np.float32] = vectors.cpu().numpy()
        return found
