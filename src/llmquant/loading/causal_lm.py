"""Load causal language models, and check that the loaded model is the requested one."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from llmquant.errors import (
    MissingDependencyError,
    ModelError,
    NotHonouredError,
    PluginError,
    SanityError,
    foreign,
)
from llmquant.loading.checked_applied import check_applied
from llmquant.loading.gguf_rope import restore_rope
from llmquant.loading.memory import held_bytes, peak_memory, touch_weights
from llmquant.loading.settings import config_differences, settle, tokenizer_differences
from llmquant.loading.strict import load_causal, load_strict, warm_imports
from llmquant.loading.token_rows import fit_tokens, leave_open
from llmquant.models.hub import download
from llmquant.plugins.evaluator import LoadedModel, LoadStats
from llmquant.plugins.field_types import class_path
from llmquant.plugins.quantizer import AppliedQuantization

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.plugins.quantizer import Quantizer
    from llmquant.storage.cache import Cache

_PROMPT = "The weather in the mountains changes quickly, so"
_SANITY_TOKENS = 16
# Standard deviations by which logits may move: inputs of equal shape give equal numbers, except in mixtures of experts,
# whose batches change. Random BERT, XLNet and XLM models of 2 layers move by 0.0015 to 0.034.
_MOVES_FLOAT32, _MOVES_16_BIT, _MIXTURE = 1e-4, 0.01, 10


def materialize(info: ModelInfo, cache: Cache, *, modules: bool = False, weights: bool = True) -> Path:
    """Return a local folder that ``from_pretrained`` reads; download or convert the model once if necessary.

    Args:
        modules: whether to download the folders of sentence-transformers' modules too.
        weights: whether to download the weights of a Hub model too.

    Raises:
        ModelError: if it cannot be downloaded or converted.
        MissingDependencyError: if a GGUF file needs the ``gguf`` package.
    """
    if info.kind == "hub" and info.repo and info.commit:
        code = info.trust_remote_code
        return download(info.repo, info.commit, info.weight_files if weights else (), code=code, modules=modules)
    if info.location is None:
        raise ModelError(f"{info.source} has neither a folder nor a Hub id")
    if info.kind == "folder":
        return info.location
    gguf = info.location
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(f"{info.source} needs the package gguf", hint='Run: pip install "llmquant[local]"')
    # The way transformers reads a GGUF file may change between versions.
    key = {"digest": info.digest, "dtype": "float32", "rope": "scaled", "transformers": transformers.__version__}
    return cache.get("gguf", key, lambda out: _convert_gguf(gguf, out), name=gguf.name)


def _convert_gguf(gguf: Path, out: Path) -> None:
    """Write an ordinary checkpoint that computes the same function.

    Weights are written in float32: a block's scale and minimum are float16 and its codes have at most 8 bits, so
    products and sums need more digits than float16 or bfloat16 have.
    """
    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}  # Any: from_pretrained's keywords
    if hasattr(transformers, "GgufConfig"):  # versions before it always dequantize
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model = load_strict(transformers.AutoModelForCausalLM, gguf.parent, gguf.name, options, allow_pickle=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"transformers cannot convert {gguf.name}: {error}") from error
    restore_rope(model.config, gguf)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def load_causal_lm(
    path: Path,
    info: ModelInfo,
    quantizer: Quantizer[Any],  # Any: its options are the plugin's own
    options: Any,  # Any: plugins bring their own dataclasses
    ctx: Context,
    *,
    to_save: bool = False,
) -> LoadedModel:
    """Load the checkpoint at `path`, quantized, onto the context's device, and check the loaded model.

    Args:
        path: the folder that `materialize` or the quantizer's ``prepare`` returned; every variant uses the tokenizer
            and the end-of-text tokens of the model itself.
        options: the quantizer's options; every value of their ``requests()`` must be found in the weights.
        to_save: whether the model will only be written as a checkpoint.

    Raises:
        ModelError: if the checkpoint cannot be loaded, or weights are missing.
        NotHonouredError: if the loaded weights are not what the options request.
        UnsupportedError: if `path` is a checkpoint of another model.
    """
    warm_imports(transformers.AutoModelForCausalLM, path, trust_remote_code=info.trust_remote_code)
    before = held_bytes(ctx.device)
    keywords = keywords_of(quantizer, info, ctx)
    with peak_memory(ctx.device) as peak:
        started = time.perf_counter()
        module = _from_pretrained(path, info, keywords, ctx.device)
        if ctx.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        make_ready(module, quantizer, to_save=to_save)
        touch_weights(module)  # without this a memory-mapped checkpoint would seem to take no memory
    applied = read_back(module, quantizer, options)
    home = materialize(info, ctx.cache)
    tokenizer = load_tokenizer(home, info)
    notes = [applied.note, *(_differences(module, tokenizer, path, home, info) if path != home else ())]
    notes += [leave_open(tokenizer, info.source), fit_tokens(module, tokenizer, info.source)]
    applied = replace(applied, note="; ".join(filter(None, notes)))
    settle(module, home, tokenizer, trust_remote_code=info.trust_remote_code)
    load = LoadStats(seconds, peak.bytes, before_bytes=before)
    return LoadedModel(module, tokenizer, info, applied, path, ctx.device, load)


def _differences(
    module: Any,  # Any: transformers has no types
    tokenizer: Any,
    path: Path,
    home: Path,
    info: ModelInfo,
) -> list[str]:
    """List how the checkpoint at `path` differs from the model's own folder, whose tokenizer is used.

    Raises:
        UnsupportedError: if the checkpoint was made from another model.
    """
    config = transformers.AutoConfig.from_pretrained(home, trust_remote_code=info.trust_remote_code)
    found = config_differences(config, module.config, str(path), info.source)
    try:
        theirs = load_tokenizer(path, info)
    except ModelError:
        return [*found, "it has no tokenizer that transformers can load: the model's is used"]
    other = tokenizer_differences(tokenizer, theirs, str(path), info.source)
    return [*found, *other, *(["the model's tokenizer is used"] if other else [])]


def _from_pretrained(path: Path, info: ModelInfo, keywords: Mapping[str, Any], device: str) -> Any:  # Any: transformers
    # By default transformers uses sdpa attention where the model supports it, and eager attention otherwise.
    module = load_causal(
        path,
        info.source,
        {"device_map": device_map(device), "trust_remote_code": info.trust_remote_code, **keywords},
        allow_pickle=info.allow_pickle,
    )
    left = [str(place) for place in (getattr(module, "hf_device_map", None) or {}).values() if place in ("cpu", "disk")]
    if left and device != "cpu":
        raise ModelError(
            f"{info.source} does not fit on {torch.cuda.device_count()} GPUs: {len(left)} of its parts were left out",
            hint="Use more GPUs per job (gpus_per_job), or quantize to fewer bits.",
        )
    return module


def device_map(device: str) -> str | dict[str, str]:
    """Return where transformers puts a model: on one device, or spread over all GPUs visible to this process."""
    several = torch.device(device) == torch.device("cuda") and torch.cuda.device_count() > 1
    return "balanced" if several else {"": device}


def load_tokenizer(path: Path, info: ModelInfo) -> Any:  # Any: transformers
    """Load the tokenizer as it was saved.

    Raises:
        ModelError: if transformers can load no tokenizer from the folder.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=info.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{info.source} has no tokenizer that transformers can load: {error}") from error


def keywords_of(quantizer: Quantizer[Any], info: ModelInfo, ctx: Context) -> LoadKwargs:  # Any: its own options
    """Ask a quantizer for its keywords for ``from_pretrained``.

    Raises:
        PluginError: if it returns anything but a dictionary.
    """
    with foreign(f"{class_path(type(quantizer))}: load_kwargs failed"):
        keywords: Any = quantizer.load_kwargs(info, ctx)  # Any: what a third party returned
    if not isinstance(keywords, Mapping):
        raise PluginError(
            f"{class_path(type(quantizer))}: load_kwargs returned {keywords!r}", hint="Return a dictionary."
        )
    return keywords


def make_ready(
    module: torch.nn.Module,
    quantizer: Quantizer[Any],  # Any: its options are the plugin's own
    *,
    to_save: bool = False,
) -> None:
    """Run the quantizer's preparation of its layers before their first use."""
    if hasattr(quantizer, "after_load"):
        with foreign(f"{class_path(type(quantizer))}: after_load failed"):
            quantizer.after_load(module, to_save=to_save)
        module.eval()  # a new layer is in training mode


def read_back(
    module: torch.nn.Module,
    quantizer: Quantizer[Any],  # Any: its options are the plugin's own
    options: Any,  # Any: plugins bring their own dataclasses
) -> AppliedQuantization:
    """Ask the quantizer what the weights hold, and compare its answer with the weights and with the options.

    Raises:
        NotHonouredError: if the loaded weights are not what the options request.
        PluginError: if the weights contradict the quantizer's answer.
    """
    with foreign(f"{class_path(type(quantizer))}: applied failed"):
        applied = quantizer.applied(module)
    check_applied(applied, module, class_path(type(quantizer)))
    check_honoured(options, applied)
    return applied


def check_honoured(options: Any, applied: AppliedQuantization) -> None:  # Any: plugins bring their own dataclasses
    """Compare the request in the options with the weights.

    Raises:
        NotHonouredError: naming the requested and the found value.
        PluginError: if a request is not a field of `AppliedQuantization`.
    """
    where = f"{class_path(type(options))}: requests"
    with foreign(f"{where} failed"):
        requests = options.requests() if hasattr(options, "requests") else {}
    if not isinstance(requests, Mapping):
        raise PluginError(f"{where} returned {requests!r}", hint="Return a dictionary.")
    unknown = [name for name in requests if not hasattr(applied, name)]
    if unknown:
        raise PluginError(f"{where} names {unknown[0]!r}, which cannot be read back")
    wrong = [
        f"{name} {wanted}, found {found}"
        for name, wanted in requests.items()
        if (found := getattr(applied, name)) != wanted
    ]
    if wrong:
        raise NotHonouredError(f"asked for {'; '.join(wrong)}", hint="No result was recorded under a wrong name.")
    if applied.method != "none" and applied.layers_quantized == 0:
        raise NotHonouredError(f"{applied.method} quantized none of {len(applied.layers_left)} linear layers")


def check_causality(model: LoadedModel) -> None:
    """Change the later half of a text, and check that the logits of the earlier half stay the same.

    This check does not suit quantizers that couple the rows of a batch: with them logits move in causal models too.

    Raises:
        SanityError: if the logits move, because then the model sees the tokens that it should predict.
    """
    module = model.module
    tokens = model.tokenizer(_PROMPT, return_tensors="pt")["input_ids"].to(module.device)
    half = tokens.shape[1] // 2
    changed = torch.cat([tokens[:, :half], tokens.roll(1)[:, half:]], dim=1)
    with torch.no_grad():
        before, after = (module(input_ids=ids, use_cache=False).logits[0, :half].float() for ids in (tokens, changed))
    moved = ((after - before).abs().max() / before.std()).item()
    limit = _MOVES_FLOAT32 if module.dtype == torch.float32 else _MOVES_16_BIT
    if any("expert" in name for name, _ in module.named_parameters()):
        limit *= _MIXTURE
    if moved > limit:
        raise SanityError(
            f"{model.info.source} is not a causal language model: when the later tokens of a text change, the logits "
            f"of the earlier tokens move by {moved:.2g} standard deviations",
            hint="Its scores would mean nothing. Use a model in which every token sees only earlier tokens.",
        )


def sanity_check(model: LoadedModel) -> str:
    """Let the model continue a sentence by 16 tokens, with the likeliest token each time.

    Returns:
        The generated text.

    Raises:
        SanityError: if logits are not finite, or the text is empty or repeats one token.
    """
    module, tokenizer = model.module, model.tokenizer
    inputs = tokenizer(_PROMPT, return_tensors="pt").to(module.device)
    prompt = inputs["input_ids"]
    with torch.no_grad():
        logits = module(input_ids=prompt, attention_mask=inputs["attention_mask"]).logits
        finite = torch.isfinite(logits)
        if not finite.all():
            share = 1 - finite.float().mean().item()
            raise SanityError(
                f"{share:.0%} of the logits of {model.info.source} as {model.applied.code} are not finite",
                hint="float16 overflows in some models trained in bfloat16. Try bfloat16.",
            )
        answer = module.generate(
            input_ids=prompt,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=_SANITY_TOKENS,
            min_new_tokens=_SANITY_TOKENS,
            do_sample=False,
        )
        tokens = answer[0, prompt.shape[1] :].tolist()
    text = str(tokenizer.decode(tokens))
    if not text.strip():
        raise SanityError(f"{model.info.source} as {model.applied.code} generates an empty text: {text!r}")
    if len(set(tokens)) == 1:
        raise SanityError(f"{model.info.source} as {model.applied.code} repeats one token: {text!r}")
    return text
