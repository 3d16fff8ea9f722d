"""What this package offers, as strings: nothing heavy is imported to list it."""

from llmquant import PluginSpec, hookimpl

NEEDS = {"requires": ("torch>=2.8", "transformers>=5.22"), "install": "pip install llmquant-example 'llmquant[local]'"}


@hookimpl
def llmquant_register():
    rtn = PluginSpec(
        kind="quantizer",
        name="rtn",
        summary="Round to nearest, simulated: no calibration, no speed-up, a floor for other methods.",
        options="llmquant_example.options:RtnOptions",
        target="llmquant_example.rtn:Rtn",
        presets={"rtn_4bit_g32": {"bits": 4}, "rtn_3bit_g32": {"bits": 3}},
        **NEEDS,
    )
    loglikelihood_of = PluginSpec(
        kind="evaluator",
        name="loglikelihood_of",
        summary="Log-likelihood of your own texts, in nats per token.",
        options="llmquant_example.options:LoglikelihoodOptions",
        target="llmquant_example.loglikelihood:Loglikelihood",
        **NEEDS,
    )
    return [rtn, loglikelihood_of]
