"""Kill programs, supervisors and workers of studies at random moments, and check whether anything is lost.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--pause 25] [--light]

Runs one command again and again, with a tiny random model, until its study is complete; then the next study begins.
Prints a line per kill, and exits with 1 when a run that was stored is gone or changed, a run cannot be read, numbers
differ from those of an undisturbed study, or processes, temporary folders or unfinished runs are left. Linux only.
With ``--light``, models and evaluators are fakes that cost milliseconds, and before each kill the clock of all
processes is set to a random time within half a day of the right one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from llmquant.storage.store import Store

TARGETS = {
    "worker": (signal.SIGKILL,),
    "supervisor": (signal.SIGKILL,),
    "program": (signal.SIGKILL, signal.SIGTERM, signal.SIGINT),
    "everything": (signal.SIGKILL,),
}
# How a command may end: done, runs failed, interrupted, by one of the signals.
CODES = {0, 1, 130, *(-number for numbers in TARGETS.values() for number in numbers)}
TEXTS = 15
SETTLED_S = 60.0
HOURS = 12.0
MODEL = """
import string, sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
letters = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(sys.argv[1])
torch.manual_seed(0)
sizes = {"vocab_size": len(letters), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "eos_token_id": 0}
LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=None)).save_pretrained(sys.argv[1])
"""
HOOK = """
from llmquant import PluginSpec, hookimpl

@hookimpl
def llmquant_register():
    return [PluginSpec("evaluator", "light", "Costs nothing.", "light:Options", "light:Evaluator")]
"""


class Studies:
    """A command with its own folder for processes, temporary files and cache.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path, *, light: bool) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._mark = f"LLMQUANT_KILLS={folder}"
        cache = {"LLMQUANT_CACHE": str(folder / "cache"), "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        self._environment = {**os.environ, **cache, "LLMQUANT_KILLS": str(folder)}
        self._clock = folder / "clock"
        subprocess.run([sys.executable, "-c", MODEL, str(folder / "model")], check=True)
        self._command = [sys.executable, "-m", "llmquant.cli.app", "compare", str(folder / "model"), "--quiet"]
        self._command += ["-q", "fp32_baseline", "-q", "bf16_baseline", "--on", "local(device=cpu, threads=1)"]
        self._log = folder / "log.txt"
        if light:
            self._environment["PYTHONPATH"] = os.pathsep.join([str(_fakes(folder / "site")), *sys.path[1:]])
            self._command += [word for number in range(TEXTS) for word in ("-e", f"light({number})")]
            return
        self._command += ["-e", "memory(prompt_tokens=8, decode_tokens=2)"]
        for number in range(TEXTS):
            text = folder / f"{number}.txt"
            text.write_text(" ".join(random.Random(number).choices(MODEL.split(), k=60)))
            self._command += ["-e", f"perplexity({text}, window=64)"]

    def start(self, store: Path) -> subprocess.Popen[bytes]:
        """Run the command on a store."""
        with self._log.open("ab") as log:
            command = [*self._command, "--store", str(store)]
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def step_clock(self, seconds: float) -> None:
        """Shift the clock of all processes; those with fakes alone read it."""
        self._clock.write_text(str(seconds))

    def folders(self) -> set[Path]:
        """Return its temporary folders, except those whose program died before it started their worker.

        They are deleted after ten minutes: nothing tells that no worker is about to start.
        """
        return {path for path in self.temporary.iterdir() if (path / "lock").exists() or not path.is_dir()}

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the command's running processes, by kind."""
        found = collections.defaultdict(list)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._mark in (f"{k}={v}" for k, v in process.environ().items()):
                    command = " ".join(process.cmdline())
                    kind = "supervisor" if "supervisor.py" in command else "worker"
                    found["program" if "llmquant.cli.app" in command else kind].append(process)
        return found


def _fakes(site: Path) -> Path:
    """Make a folder that Python starts with, with an installed package."""
    info = site / "light-1.dist-info"
    info.mkdir(parents=True)
    source = Path(__file__).with_name("light.py").read_text()
    for name in ("sitecustomize", "light"):
        (site / f"{name}.py").write_text(source)
    (site / "light_hook.py").write_text(HOOK)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: light\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[llmquant]\nx = light_hook\n")
    return site


def fingerprints(store: Store) -> dict[str, str]:
    """Digest each completed run's files, after reading all runs."""
    found = {}
    for run_id in store.runs():
        for attempt in store.attempts(run_id):
            run = store.attempt(run_id, attempt)
            store.samples(run)
            if run.status == "completed":
                folder = store.folder(run_id, attempt)
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                parts = [str(path.relative_to(folder)).encode() + path.read_bytes() for path in files]
                found[folder.name] = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return found


def numbers(store: Store) -> dict[str, object]:
    """Return each run's measurements; for experiments that depend on the hardware, only that there are any."""
    return {
        run_id: run.status if run.experiment.hardware else (run.status, run.measurements, store.samples(run))
        for run_id, run in store.runs().items()
    }


def settle(studies: Studies, abandoned: set[Path]) -> None:
    """Wait until no process or file of an ended program is left.

    Args:
        abandoned: temporary folders that nobody was left to delete; the next program does.
    """
    until = time.monotonic() + SETTLED_S
    while left := [*studies.processes().values(), *(studies.folders() - abandoned)]:
        if time.monotonic() > until:
            sys.exit(f"after {SETTLED_S:g} s there are left: {left}")
        time.sleep(0.1)


def disturb(studies: Studies, store: Store, chance: random.Random, pause_s: float, kills: list[str]) -> None:
    """Run a study until it is complete, and kill its processes at random moments."""
    stored: dict[str, str] = {}
    disturbed, abandoned = False, set[Path]()
    program = studies.start(store.root)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(chance.uniform(0, pause_s))
        target = chance.choice(list(TARGETS))
        studies.step_clock(chance.uniform(-HOURS, HOURS) * 3600)
        if program.poll() is None:
            found = studies.processes()
            victims = [p for ps in found.values() for p in ps] if target == "everything" else found.get(target, [])
            number = chance.choice(TARGETS[target])
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(number)
            if not victims:
                continue
            disturbed = True
            kills.append(f"{target}, {number.name}")
            if target in ("worker", "supervisor"):
                print(f"{len(kills)}: {kills[-1]}", flush=True)
                continue
            program.wait(SETTLED_S)
            if target == "everything":
                abandoned |= studies.folders()
        code = program.returncode
        settle(studies, abandoned)
        now = fingerprints(store)
        print(f"{len(kills)}: {kills[-1] if kills else ''}; exit code {code}, {len(now)} runs completed", flush=True)
        if lost := [name for name, digest in stored.items() if now.get(name) != digest]:
            sys.exit(f"gone or changed: {lost}")
        if code not in CODES or (code != 0 and not disturbed):
            sys.exit(f"the command ended with {code}")
        if code == 0:
            return
        stored, disturbed = now, False
        program = studies.start(store.root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=25.0, help="maximum time between two kills, in seconds")
    parser.add_argument("--light", action="store_true", help="use fakes, and step the clock by hours at each kill")
    arguments = parser.parse_args()
    # A shell's background processes, and their children, ignore Ctrl-C; a program that a person starts does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="llmquant-kills-"))
    studies, chance, kills = Studies(folder, light=arguments.light), random.Random(arguments.seed), list[str]()
    calm = Store(folder / "calm")
    if studies.start(calm.root).wait() != 0:
        sys.exit(f"the undisturbed study failed: {folder / 'log.txt'}")
    print(f"undisturbed: {len(calm.runs())} runs", flush=True)
    rounds = 0
    while len(kills) < arguments.kills:
        rounds += 1
        store = Store(folder / f"store-{rounds}")
        disturb(studies, store, chance, arguments.pause, kills)
        if any(run.finished_at < run.started_at for run in store.runs().values()):
            sys.exit(f"a run in {store.root} ended before it began")
        if numbers(store) != numbers(calm):
            sys.exit(f"{store.root} differs from {calm.root}")
        if left := [*store.root.rglob(".partial-*"), *studies.folders()]:
            sys.exit(f"left: {left}")
    counts = ", ".join(f"{count} x {kill}" for kill, count in sorted(collections.Counter(kills).items()))
    print(f"{len(kills)} kills in {rounds} studies lost nothing: {counts}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
