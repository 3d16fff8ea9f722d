"""lm-eval's greedy generation with answers that end by themselves: the same tokens, and a check of close decisions."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria

from llmquant.engine.forward import free_bytes
from llmquant.engine.ragged import Answer, Prompt, decode
from llmquant.engine.trie import Text, plan
from llmquant.evaluators.lm_eval.logits import refuse_nan
from llmquant.evaluators.lm_eval.model import FittingLM
from llmquant.loading.memory import is_out_of_memory

if TYPE_CHECKING:
    from llmquant.engine.lm import TreeLM

# Answers at a time, if their keys and values fit into half of the free memory.
_SLOTS = 16
# Settings of a request and of a model that leave greedy generation as it is; with any other, lm-eval generates.
_REQUEST = frozenset({"until", "max_gen_toks", "do_sample", "temperature"})
_MODEL = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p"})
_MODEL |= {"min_p", "max_length", "use_cache", "output_attentions", "output_hidden_states", "transformers_version"}
_MODEL |= {"_from_model_config", "_commit_hash"}

# No note in tables says so, since it holds for every variant in 16 bits.
ROUNDED = "rounding in 16 bits changes some generated answers"

_log = logging.getLogger(__name__)


def generate(lm: TreeLM, requests: Sequence[Any]) -> list[str]:  # Any: Instance
    """Answer prompts as lm-eval does at batch size 1.

    Raises:
        RunError: if a task asks for more tokens than the model has positions.
    """
    settings = [normalize_gen_kwargs(request.args[1], lm.max_gen_toks) for request in requests]
    lm.report.reason = lm.report.reason or _why_not(lm, settings)
    if lm.report.reason:
        return _stock(lm, requests)
    lm.note_prompts(requests)
    lm._expect(len(requests))
    end = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    stops = [handle_stop_sequences(each["until"], eos=end) for each in settings]
    rules = [lm.complete.get(request.task_name) for request in requests]
    prompts = [
        _prompt(lm, request.args[0], each["max_gen_toks"], stop, rule)
        for request, each, stop, rule in zip(requests, settings, stops, rules, strict=True)
    ]
    answers = _answers(lm, prompts)
    again = _uncertain(lm, prompts, answers, [(request.task_name, request.doc_id) for request in requests])
    if again is None:
        return _stock(lm, requests)
    texts = [
        postprocess_generated_text(lm.tok_decode(answer.tokens), stop, None)
        for answer, stop in zip(answers, stops, strict=True)
    ]
    for index, text in zip(again, _stock(lm, [requests[index] for index in again]), strict=True):
        texts[index] = text
    for index in set(range(len(requests))).difference(again):
        written = lm.measure(answers[index].tokens, stops[index], prompts[index].limit, rules[index])
        lm.written[requests[index].task_name, requests[index].doc_id] += written
        lm.reasoned += "</think>" in texts[index]
    return texts


def _stock(lm: TreeLM, requests: Sequence[Any]) -> list[str]:  # Any: Instance
    return FittingLM.generate_until(lm, list(requests)) if requests else []


def _why_not(lm: TreeLM, settings: Sequence[Mapping[str, Any]]) -> str:  # Any: a task's settings
    """Return why lm-eval generates; ``""`` if it is greedy generation without anything else."""
    if lm.exact and lm.model.dtype != torch.float32:
        return ROUNDED
    if lm.think_end_token is not None:
        return "answers contain reasoning"
    if any(each["do_sample"] is not False for each in settings):
        return "answers are sampled"
    others = {name for each in settings for name in each} - _REQUEST
    others |= lm.model.generation_config.to_diff_dict().keys() - _MODEL
    return f"generation has {', '.join(sorted(others))}" if others else ""


def _prompt(lm: TreeLM, context: str, limit: int, stop: list[str], rule: Any) -> Prompt:  # Any: Complete | None
    """Tokenize and cut a prompt as lm-eval does, and end its answer as lm-eval and transformers do."""
    ids, _ = lm.tok_batch_encode([context], left_truncate_len=lm.max_length - limit, truncation=lm.truncation)
    criteria = stop_sequences_criteria(lm.tokenizer, stop, 0, 1)
    ends = lm.model.generation_config.eos_token_id
    last = {ends} if isinstance(ends, int) else set(ends or ())

    def ended(answer: Sequence[int]) -> bool:
        seen = torch.tensor([answer])
        stopped = answer[-1] in last or any(criterion(seen, None) for criterion in criteria)
        return stopped or lm.is_complete(answer, stop, rule)

    return Prompt(ids[0].tolist(), limit, ended)


def _answers(lm: TreeLM, prompts: Sequence[Prompt]) -> list[Answer]:
    """Answer prompts, as many at a time as fit into memory."""
    planned = plan([Text(prompt.tokens, ()) for prompt in prompts], 1)
    lm.report.stock += planned.stock
    lm.report.distinct += planned.distinct
    slots = min(_SLOTS, _fitting(lm, prompts)) if lm._shrink else lm.batch_size
    found: dict[int, Answer] = {}
    while waiting := [number for number in range(len(prompts)) if number not in found]:
        try:
            for number, answer in decode(lm.model, [prompts[number] for number in waiting], slots):
                found[waiting[number]] = answer
                lm.report.read += answer.read
                lm._finish(1)
        except Exception as error:  # torch and the backends of quantized layers may raise anything
            if not lm._shrink or slots == 1 or not is_out_of_memory(error):
                raise
            slots //= 2
            lm.batch_size_per_gpu = min(lm.batch_size, slots)
            _log.warning("answers do not fit; continuing with %d at a time", slots)
        gc.collect()  # outside the except clause, whose traceback keeps the tensors alive
    return [found[number] for number in range(len(prompts))]


def _fitting(lm: TreeLM, prompts: Sequence[Prompt]) -> int:
    """Return how many answers' keys and values fit into half of the free memory, at least one."""
    config = lm.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * lm.model.dtype.itemsize
    longest = max(len(prompt.tokens) + prompt.limit for prompt in prompts)
    return max(1, int(free_bytes(lm.device) // 2 // (per_token * longest)))


def _uncertain(
    lm: TreeLM, prompts: Sequence[Prompt], answers: Sequence[Answer], documents: Sequence[tuple[str, int]]
) -> list[int] | None:
    """Return the answers to run again: those with a decision that rounding could change.

    Rounding is measured on random answers; ``None`` if it is no rounding.
    """
    verified = lm._draw.sample(range(len(prompts)), min(lm._verify, len(prompts)))
    for index in verified:
        if not lm._agrees(_difference(lm.model, prompts[index], answers[index]), 1):
            return None
    refuse_nan(margin for answer in answers for margin in answer.margins)
    least = [min(answer.margins) for answer in answers]
    again = [number for number, pair in enumerate(zip(documents, least, strict=True)) if lm.is_close(*pair)]
    if lm.model.dtype != torch.float32:
        # Most answers have a decision within a step or two of 16 bits, which lm-eval's own batch size changes as well.
        lm.report.kept += len(again)
        again = []
    lm.report.requests += len(prompts)
    lm.report.verified += len(verified)
    lm.report.again += len(again)
    return again


def _difference(module: Any, prompt: Prompt, answer: Answer) -> float:  # Any: transformers has no types
    """Return the largest difference of an answer's margins from those of a plain forward pass over it alone."""
    ids = torch.tensor([[*prompt.tokens, *answer.tokens[:-1]]], device=module.device)
    chosen = torch.tensor(answer.tokens, device=module.device)[:, None]
    with torch.no_grad():
        logits = module(input_ids=ids, use_cache=False, logits_to_keep=len(chosen)).logits[0].float()
    margins = logits.gather(1, chosen)[:, 0] - logits.scatter(1, chosen, -torch.inf).amax(1)
    return float((margins.cpu() - torch.tensor(answer.margins)).abs().max())
