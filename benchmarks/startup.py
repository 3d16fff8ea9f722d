"""Measure how long the command line takes to start, as a multiple of the start of Python itself.

Runs are interleaved, so that a busy moment of the machine affects all of them equally; medians are compared.
Exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

REPEATS = 10
# torch alone takes over a hundred times as long to import as Python takes to start, so one stray import shows.
LIMITS = {"import llmquant": 4.0, "llmquant --help": 10.0}


def main() -> int:
    console_script = Path(sys.executable).with_name("llmquant" + (sysconfig.get_config_var("EXE") or ""))
    if not console_script.exists():
        print(f"{console_script} does not exist; install the package into this environment first")
        return 2
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import llmquant": [sys.executable, "-c", "import llmquant"],
        "llmquant --help": [str(console_script), "--help"],
        "llmquant plugins": [str(console_script), "plugins"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(REPEATS + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if repeat:  # the first round fills the disk cache and writes .pyc files
                seconds[name].append(time.perf_counter() - start)

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    failed = False
    for name, median in medians.items():
        ratio = median / medians["python"]
        limit = LIMITS.get(name)
        over = limit is not None and ratio > limit
        failed = failed or over
        allowed = "" if limit is None else f"  limit {limit:.0f}x{'  EXCEEDED' if over else ''}"
        print(f"{name:18}{1000 * median:9.1f} ms{ratio:8.1f}x{allowed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
