"""What this package offers, and its options: the light half, which imports nothing heavy."""

from dataclasses import dataclass

from llmquant import PluginSpec, hookimpl
from llmquant.errors import OptionError


@dataclass(frozen=True)
class NewPluginOptions:
    """Where jobs run.

    Attributes:
        slots: jobs at a time, for example 2.
        threads: CPU threads per job, for example 4.
    """

    slots: int = 1
    threads: int = 1

    def __post_init__(self):
        for name in ("slots", "threads"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}", hint="Use 1 or more.")


@hookimpl
def llmquant_register():
    """Return the plugins of this package."""
    return [
        PluginSpec(
            kind="executor",
            name="newplugin",
            summary="SUMMARY",
            options="llmquant_newplugin.plugin:NewPluginOptions",
            target="llmquant_newplugin.executor:NewPlugin",
            accepts=(),
            install="pip install llmquant-newplugin",
        )
    ]
