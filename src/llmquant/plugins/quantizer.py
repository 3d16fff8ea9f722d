"""The contract of quantizers: the representation of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from llmquant.errors import PluginError
from llmquant.plugins.context import Context, LoadKwargs
from llmquant.study.call import Json
from llmquant.study.reading import Count

if TYPE_CHECKING:
    import torch

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.evaluator import Cost
    from llmquant.study.experiment import Documents

Options = TypeVar("Options")


@dataclass(frozen=True)
class AppliedQuantization:
    """The actual properties of the quantized weights, read back from the loaded modules.

    Attributes:
        method: ``none``, ``bitsandbytes``, ``gptq`` and so on.
        code: storage format of a weight: ``bfloat16``, ``int8``, ``nf4``, ``fp4``.
        bits: bits per weight, without scales.
        compute_dtype: dtype of the quantized layers' multiplications.
        dtypes: stored elements by storage dtype, as `llmquant.loading.memory.stored_elements` counts them.
        layers_quantized: number of layers with quantized weights.
        block_size: number of weights that share a scale; ``None`` for one scale per row or none.
        double_quantization: whether the scales are quantized too.
        layers_left: names of linear layers that were not quantized.
        note: a note for readers of the table.
        served_bytes: size of the weights in bytes where they are served, if they run dequantized here.
    """

    method: str
    code: str
    bits: float
    compute_dtype: str
    dtypes: Mapping[str, Count]
    layers_quantized: Count
    block_size: Count | None = None
    double_quantization: bool = False
    layers_left: tuple[str, ...] = ()
    note: str = ""
    served_bytes: Count | None = None


@dataclass(frozen=True)
class SingleFile:
    """A file that ``llmquant quantize`` writes instead of a checkpoint.

    Attributes:
        suffix: end of its name, for example ``.gguf``.
        command: the command that serves it, without the file's name, for example ``llama-server -m``.
    """

    suffix: str
    command: str


class QuantizerOptions:
    """The light half: options that check themselves. Every method is optional; a helper's name begins with ``_``."""

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse an unsupported request before anything is loaded.

        Raises:
            RequestError: if the request is not supported.
        """

    def weight_bytes(self, model: ModelInfo, device: str) -> int | None:
        """Predict the size of the loaded weights in bytes; ``None`` for no prediction."""
        return None

    def served_bytes(self, model: ModelInfo) -> int | None:
        """Predict the size of the weights in bytes where they are served; ``None`` if they run in that form here."""
        return None

    def requests(self) -> Mapping[str, Json]:
        """Return the fields of `AppliedQuantization` that must be found in the loaded weights."""
        return {}

    def texts(self) -> Iterable[str]:
        """Return the available calibration text, to warn if the model is evaluated on it."""
        return ()

    def hub_rows(self) -> Mapping[str, str]:
        """Return the needed data sets of the Hub, and what to write instead.

        Each is written ``repository:configuration:split:column``; all but the repository may be missing or empty.
        """
        return {}

    def cost(self, model: ModelInfo, documents: Documents) -> Cost | None:
        """Return the approximate number of tokens for making a checkpoint."""
        return None

    def check_save(self, device: str) -> None:
        """Refuse to save a loaded model that cannot be written as a checkpoint.

        Raises:
            RequestError: if the model cannot be saved.
        """

    def check_export(self, model: ModelInfo) -> None:
        """Refuse a model that cannot be written as a `SingleFile`, from its configuration and small files.

        Raises:
            RequestError: naming the reason.
        """

    def single_file(self) -> SingleFile | None:
        """Return the kind of file that `Quantizer.export` writes; ``None`` if a checkpoint is written."""
        return None

    def serving(self) -> str | None:
        """Return what vLLM needs to serve a saved checkpoint: ``""`` for nothing, or the name of a package.

        ``None`` means that vLLM does not load the format.
        """
        return None

    def row_independent(self) -> bool:
        """Return whether these options are an exception to the spec's ``row_independent=False``."""
        return False


class Quantizer(ABC, Generic[Options]):
    """Defines the representation of the weights. Constructed with its options, on the worker."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        """Write a quantized checkpoint to `out`, an empty folder, and return it; its spec says ``checkpoint=True``.

        Without that, return the folder to load.
        """
        return model

    @abstractmethod
    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        """Return keywords for ``from_pretrained``: ``dtype``, ``quantization_config``."""

    def after_load(self, module: torch.nn.Module, *, to_save: bool) -> None:
        """Prepare the loaded layers for their first use, or for saving only."""

    @abstractmethod
    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back the actual properties of the weights.

        Raises:
            NotHonouredError: if nothing is quantized, or the layers differ.
        """

    def check_export(self, folder: Path, model: ModelInfo) -> None:
        """Refuse a model that cannot be written as a `SingleFile`.

        Args:
            folder: the checkpoint, perhaps without its weights.

        Raises:
            UnsupportedError: naming the reason.
        """

    def export(self, folder: Path, model: ModelInfo, out: Path, ctx: Context) -> AppliedQuantization:
        """Write the weights in `folder`, quantized, as the file `out`, and read back its properties.

        Raises:
            PluginError: from a quantizer whose options declare a `SingleFile`, but that does not write it.
        """
        raise PluginError(
            f"{type(self).__name__} writes no single file, although its options declare one",
            hint="Define export(folder, model, out, ctx), or remove single_file() from the options.",
        )
