"""Checkpoints of packed weights: import this module before ``from_pretrained`` opens one with transformers alone."""

import torch
from llmquant import replace_linear
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmquant_newplugin import quantizer


@register_quantization_config("newplugin")
class NewPluginConfig(QuantizationConfigMixin):
    """The part of ``config.json`` from which transformers knows the method and its options."""

    def __init__(self, group_size=32, **_):
        self.quant_method = "newplugin"
        self.group_size = group_size


@register_quantizer("newplugin")
class NewPluginHfQuantizer(HfQuantizer):
    """Puts packed layers into a model of transformers, while it is loaded."""

    is_trainable = False

    def is_serializable(self):
        """Allow ``save_pretrained``."""
        return True

    def _process_model_before_weight_loading(self, model, **_):
        if self.pre_quantized:  # the checkpoint's codes and scales are loaded into empty layers
            size = self.quantization_config.group_size
            replace_linear(model, lambda layer: quantizer.PackedLinear.like(layer, size))

    def _process_model_after_weight_loading(self, model, **_):
        if not self.pre_quantized:
            size = self.quantization_config.group_size
            replace_linear(model, lambda layer: quantizer.PackedLinear.quantized(layer, size))


class NewPluginCheckpoint(quantizer.NewPlugin):
    """Quantizes once, into a checkpoint that llmquant keeps in its cache."""

    def prepare(self, model, out, ctx):
        """Write the checkpoint with its tokenizer."""
        config = NewPluginConfig(**vars(self.options))
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, quantization_config=config)
        loaded.save_pretrained(out)
        AutoTokenizer.from_pretrained(model).save_pretrained(out)
        return out
