"""The heavy half: the mean of the last hidden states of a text's tokens."""

import torch
from llmquant import Embedder, Prepared
from llmquant.loading.strict import load_strict
from transformers import AutoModel, AutoTokenizer


class NewPlugin(Embedder):
    """Opens the checkpoint."""

    def open(self, path, info, load_kwargs, ctx):
        """Load it onto the device; the quantizer's keywords are for ``from_pretrained``."""
        keywords = {"device_map": {"": ctx.device}, **load_kwargs}
        module = load_strict(AutoModel, path, info.source, keywords)  # refuses a checkpoint with missing weights
        return OpenNewPlugin(module, AutoTokenizer.from_pretrained(path), self.options.max_tokens)


class OpenNewPlugin:
    """The model on its device."""

    def __init__(self, module, tokenizer, max_tokens):
        self.module, self.tokenizer, self.max_tokens = module, tokenizer, max_tokens

    def prepare(self, text, image, role):
        """Tokenize one text, in one of several threads."""
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens).input_ids
        return Prepared(len(ids), ids)

    @torch.inference_mode()
    def embed(self, batch, role):
        """Return one vector of length 1 per text; padding does not count."""
        padded = self.tokenizer.pad({"input_ids": [item.inputs for item in batch]}, return_tensors="pt")
        padded = padded.to(self.module.device)
        states = self.module(**padded).last_hidden_state.float()
        mask = padded["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        return list(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy())
