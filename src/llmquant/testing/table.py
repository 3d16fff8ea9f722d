"""The page of all checks: ``python -m llmquant.testing.table`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from llmquant.testing.suite import CHECKS

_HEAD = """# Checks for plugins

`llmquant.testing.checks(spec, call)` and `llmquant plugins check NAME` run these checks, in this order.
A check is skipped if it does not apply, or if an earlier check failed that it depends on.
Any exception of the plugin becomes a failure that names the plugin and the check.
"""


def page() -> Iterator[str]:
    """Yield the lines of the page, in Markdown."""
    yield from _HEAD.splitlines()
    shared = [check for check in CHECKS["quantizer"] if check in CHECKS["executor"]]
    for title, checks in {"Every plugin": shared, **{f"{kind.capitalize()}s": CHECKS[kind] for kind in CHECKS}}.items():
        yield from ("", f"## {title}", "", "| check | promise | how to fix a failure |", "| --- | --- | --- |")
        for check in checks:
            if title == "Every plugin" or check not in shared:
                yield f"| `{check.name}` | {check.meaning} | {check.fix} |"


if __name__ == "__main__":
    print(*page(), sep="\n")  # noqa: T201 - a command
