"""What plugins implement, and what they get: the contracts between llmquant and everybody else's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from llmquant.call import Json
from llmquant.experiment import Digest, Documents
from llmquant.run import Result

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmquant.cache import Cache
    from llmquant.models import ModelInfo

Device = Literal["cpu", "cuda", "mps"]
JobState = Literal["queued", "running", "ended", "lost"]
Role = Literal["query", "document"]
Modality = Literal["text", "image"]
Similarity = Literal["cosine", "dot", "maxsim"]
Fusion = Literal["joint", "sum", "mean"]


@dataclass(frozen=True)
class Context:
    """All that a quantizer or an evaluator gets from us.

    Attributes:
        device: where the model is: ``cpu``, ``cuda`` or ``mps``.
        seed: for every random choice.
        documents: which documents to use.
        cache: for what can be made again.
        inputs: local files that options name, by content.
        reference: the baseline's file; ``None``: this is the baseline, leave one in `files`.
        files: a folder; what is written here is kept with the run.
        progress: call with (done, total) as the work goes on.
    """

    device: Device
    seed: int
    documents: Documents
    cache: Cache
    inputs: Mapping[Digest, Path]
    reference: Path | None
    files: Path
    progress: Callable[[int, int], None]


@dataclass(frozen=True)
class AppliedQuantization:
    """What is really in the weights, read back from the loaded modules.

    Attributes:
        method: ``none``, ``bitsandbytes``, ``gptq`` and so on.
        code: how a weight is coded: ``bfloat16``, ``int8``, ``nf4``, ``fp4``.
        bits: bits a weight, scales not counted.
        block_size: weights that share a scale; ``None`` where a row does or nothing is shared.
        double_quantization: whether the scales are quantized too.
        compute_dtype: in which the quantized layers multiply.
        dtypes: stored elements by storage dtype, as `llmquant.memory.stored_elements` counts them.
        layers_quantized: how many layers hold quantized weights.
        layers_left: names of linear layers left as they were.
        note: anything a reader of the table must know.
    """

    method: str
    code: str
    bits: float
    block_size: int | None
    double_quantization: bool
    compute_dtype: str
    dtypes: Mapping[str, int]
    layers_quantized: int
    layers_left: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class LoadStats:
    """What loading cost; only the loader can know it.

    Attributes:
        seconds: wall time from the files to a model on its device.
        peak_bytes: the most memory that loading took on the device, above what the process had before;
            ``None`` where the system does not tell.
    """

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model on its device, ready to be measured.

    Attributes:
        module: in evaluation mode.
        path: the folder its weights came from.
        load: what loading cost.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    applied: AppliedQuantization
    path: Path
    device: Device
    load: LoadStats


class Quantizer(Protocol):
    """How the weights are represented. Constructed with its options, on the worker.

    The options (the light half) may define ``check(model, device)``, which raises `RequestError`;
    ``weight_bytes(model, device) -> int``: what the loaded weights will hold; ``requests() -> Mapping[str, Json]``: the
    fields of `AppliedQuantization` that must come out as asked; ``texts() -> Iterable[str]``: the calibration text
    that is at hand, to warn where it is evaluated on; ``cost(model, documents) -> Cost`` of making a checkpoint;
    ``check_save(device)``, which raises `RequestError` if what is loaded cannot be written as a checkpoint; and
    ``row_independent() -> bool``, where the spec says ``False``: whether it is true of these options.
    The heavy half may define ``after_load(module, *, to_save)``: what has to be done to the loaded modules before their
    first use, or before they are only saved.
    """

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        """Write a quantized checkpoint to `out`, an empty folder, and return it; its spec says ``checkpoint=True``.

        Methods that quantize on loading return `model`.
        """
        ...

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> Mapping[str, Any]:  # Any: from_pretrained's keywords
        """Return keywords for ``from_pretrained``: ``dtype``, ``quantization_config``."""
        ...

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back what is really in the weights."""
        ...


class Evaluator(Protocol):
    """Measures a loaded variant. Constructed with its options, on the worker.

    The options (the light half) may define ``check(model, device)``, ``parts()`` (one experiment each),
    ``cost(model, documents) -> Cost``, and ``texts()`` as above.
    """

    def evaluate(self, subject: Any, ctx: Context) -> Iterable[Result]:
        """Yield a result a task.

        Args:
            subject: a `LoadedModel` or a `LoadedEmbedder`, whichever the spec ``accepts``.
        """
        ...


@dataclass(frozen=True)
class EmbedderInfo:
    """What an embedder gives, known before it is loaded.

    Attributes:
        width: of its vectors.
        dims: widths they can be cut to, the largest first; ``(width,)`` where it was trained for none.
        modalities: what it encodes.
        similarity: how its vectors are compared; ``maxsim`` is late interaction: several vectors an item.
        fusion: how a text and an image of one item become one vector: ``joint`` in one pass of the model, else encoded
            apart and added or averaged, at unit length again where the similarity is cosine.
        dim: the width that vectors are cut to where a study names none; ``None`` is `width`.
    """

    width: int
    dims: tuple[int, ...]
    modalities: tuple[Modality, ...] = ("text",)
    similarity: Similarity = "cosine"
    fusion: Fusion = "joint"
    dim: int | None = None


@dataclass(frozen=True)
class Prepared:
    """An item as the model takes it, on the CPU.

    Attributes:
        tokens: how much work it is, to fill batches evenly.
        inputs: whatever ``embed`` understands.
    """

    tokens: int
    inputs: Any  # Any: each embedder's own


class OpenEmbedder(Protocol):
    """An embedding model on its device."""

    @property
    def module(self) -> torch.nn.Module:
        """Return the module that holds the weights, for `Quantizer.applied` and for measuring."""
        ...

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Apply prompts and preprocessing to one item; called in several threads at once.

        Args:
            text: never empty; ``None`` where the item has an image alone.
            image: RGB.
        """
        ...

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch on the device.

        Returns:
            Of each item ``(width,)``, or ``(vectors, width)`` with late interaction: unpadded, and unit length unless
            the similarity is ``dot``.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class Embedder(Protocol):
    """Opens an embedding model. Constructed with its options, on the worker.

    The options (the light half) define ``checkpoint: str``, a model as `inspect_model` takes it or ``""`` for none, and
    ``info(model: ModelInfo) -> EmbedderInfo``, which raises `ModelError` where the checkpoint is of another kind; and
    may define ``dim: int | None``, the Matryoshka width that is cut to outside the embedder; ``check(model, device)``;
    and ``for_dims(dims)``, options of the same embedder whose vectors can be cut to all of a study's widths. Every
    other option is part of what a cached vector is known by.
    """

    def open(self, path: Path, info: ModelInfo, load_kwargs: Mapping[str, Any], ctx: Context) -> OpenEmbedder:
        """Load the checkpoint onto the context's device.

        Args:
            path: its folder; an empty one where there is none.
            load_kwargs: for ``from_pretrained``, from the quantizer.

        Raises:
            ModelError: if tensors are missing or unexpected.
        """
        ...


@dataclass(frozen=True)
class Cost:
    """About how much work an experiment is, to say before starting how long it will take.

    Attributes:
        prefill_tokens: tokens read.
        decode_tokens: tokens generated, one forward pass each (a batch counts once).
    """

    prefill_tokens: int
    decode_tokens: int = 0


@dataclass(frozen=True)
class Job:
    """Experiments of one (model, quantizer): one process, one load of the weights.

    Attributes:
        study: id of the study; its folder in the store holds the job's record, journal and log.
        number: counts from 1 inside the study.
        model: `ModelUse` as JSON.
        experiments: ``(experiment as JSON, attempt)``, hardware experiments first.
        inputs: local files that options name: path by digest.
        device: where to put the model.
        threads: CPU threads; ``None`` leaves torch's default.
        plugins: plugins added with `register`, as import strings of their specs.
        executor: the name of the one it is for.
    """

    study: str
    number: int
    model: Mapping[str, Any]  # Any: a JSON object
    experiments: tuple[tuple[Mapping[str, Any], int], ...]  # Any: a JSON object
    inputs: Mapping[str, str] = field(default_factory=dict)
    device: Device = "cpu"
    threads: int | None = None
    plugins: tuple[Mapping[str, Json], ...] = ()
    executor: str = "local"


@dataclass(frozen=True)
class Offer:
    """What jobs cost at most.

    Attributes:
        text: a line for people: how many jobs, on what, the hours and the dollars, where the rates come from.
        agreed: the executor's options agree to it already, by a budget or by ``yes``.
    """

    text: str
    dollars: float
    agreed: bool


class Executor(Protocol):
    """Where jobs run. The folder is the contract: a worker leaves runs in its store, `collect` brings them here.

    Attributes:
        name: such as ``local``; the ids of its jobs mean something to executors of this name alone.
        outlives: jobs go on when the program that submitted them ends, and can be taken up by another.
        installs: it installs what the workers need; what is installed here does not matter.
        hardware: such as ``cpu AMD EPYC 9654`` or ``L40S``: part of the identity of hardware experiments only.
        device: what the workers compute on.
        slots: how many jobs run at a time.
        threads: CPU threads a worker; ``None`` leaves torch's default.
        notices: what a person should know before starting, such as a GPU that is busy.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - in Attributes
    @property
    def outlives(self) -> bool: ...  # noqa: D102
    @property
    def installs(self) -> bool: ...  # noqa: D102
    @property
    def hardware(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> Device: ...  # noqa: D102
    @property
    def slots(self) -> int: ...  # noqa: D102
    @property
    def threads(self) -> int | None: ...  # noqa: D102
    @property
    def notices(self) -> tuple[str, ...]: ...  # noqa: D102

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> Offer | None:
        """Refuse jobs that could not run, before anything is started or paid for, and say what the rest cost at most.

        Args:
            running: ids of jobs of the study that another program submitted: they count towards a limit, and are not
                touched.

        Returns:
            ``None`` where nothing is paid for. Submitting them afterwards is within the offer.

        Raises:
            RequestError: naming what is wrong: no access, a plugin that cannot be shipped, more than the budget.
        """
        ...

    def submit(self, job: Path, store: Path) -> str:
        """Start the job whose record is at `job`; return an id that any later process can use."""
        ...

    def collect(self, job_id: str, store: Path) -> JobState:
        """Copy what is new into `store`, whole or partial, and say how the job stands."""
        ...

    def why_lost(self, job_id: str) -> str:
        """Say, in a clause, how a lost job ended."""
        ...

    def dollars(self, job_id: str) -> float | None:
        """Say about what a job that has ended cost; ``None`` where nothing is paid for or it is not known."""
        ...

    def cancel(self, job_id: str) -> None:
        """End the job; return when it has ended."""
        ...

    def leave(self, job_id: str) -> None:
        """Let the job go on without this program: `close` will not end it. Called where `outlives`."""
        ...

    def recall(self, study: str, store: Path) -> None:
        """Bring the records of a study that was submitted on another machine into `store`.

        Raises:
            StoreError: if the executor knows no such study, or keeps none.
        """
        ...

    def close(self) -> None:
        """Release what the executor holds; cancel the running jobs that it submitted and did not leave, no others."""
        ...
