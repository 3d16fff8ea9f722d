"""Studies on a stand-in of Modal, with its real client and its real container entry point."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn

import odd_package
import pytest

import llmquant as lq
from llmquant import api
from llmquant.catalogs.mteb import known_mteb
from llmquant.errors import OptionError, RequestError, UnknownNameError, UnsupportedError
from llmquant.executors.modal import image as modal_image
from llmquant.executors.modal.executor import ModalExecutor
from llmquant.executors.modal.volume import fetch, new_key
from llmquant.planning.resolve import resolve
from llmquant.plugins.executor import Offer
from llmquant.plugins.registry import registry
from llmquant.results.preview import preview
from llmquant.storage.cache import Cache
from llmquant.storage.journal import JobRecord
from llmquant.storage.store import write_json
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, Experiment, ModelUse, Variant
from llmquant.study.job import Job
from misbehaving_studies import Here

modal = pytest.importorskip("modal", reason='needs Modal\'s client: pip install "llmquant[modal]"')

if TYPE_CHECKING:
    from modal_server import ModalServer

CPU = "gpu=none, cpus=1, memory_gib=1, max_parallel=1"
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
ROWS = [
    ("Mina kept a blue kite in the shed. Her brother Tom borrowed it on Sunday.", "What color was the kite?", "blue"),
    ("The ferry left at nine with forty goats. At noon it came back empty.", "When did the ferry leave?", "at nine"),
    ("Ada baked two loaves and gave one to the postman, who was hungry.", "How many loaves?", "two"),
]
TASK = """
task: questions
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{story}}}}\\nQuestion: {{{{question}}}}\\nAnswer:"
doc_to_choice: ["blue", "at nine", "two"]
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module", autouse=True)
def place(server: ModalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install a third party's package, and use a cache of the tests' own."""
    place = tmp_path_factory.mktemp("place")
    odd_package.install(place / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place / "site"))
        patch.setenv("LLMQUANT_CACHE", str(place / "cache"))
        registry.cache_clear()
        yield place
    registry.cache_clear()


@pytest.fixture
def task(place: Path) -> str:
    rows = place / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps(dict(zip(("story", "question", "answer"), r, strict=True))) + "\n" for r in ROWS)
    )
    (place / "questions.yaml").write_text(TASK.format(rows="rows.jsonl"))
    return f"lm_eval({place / 'questions.yaml'}, data={rows})"


@pytest.fixture(scope="module")
def job(tiny_model: Path, place: Path) -> Job:
    """Return a job as the scheduler would check it."""
    known = registry()
    model = ModelUse(str(tiny_model), f"sha256:{'0' * 64}")
    quantizer = known.choose("quantizer", Call.parse("fp32_baseline")).use
    experiment = Experiment(
        Variant(model, quantizer), known.choose("evaluator", Call.parse("odd")).use, Documents(1), 0, None
    )
    return Job("study", 1, model.to_json(), ((experiment.to_json(), 1),), executor="modal")


@pytest.mark.slow
def test_scores_are_those_of_this_machine(server: ModalServer, tiny_model: Path, place: Path, task: str):
    """The same study on Modal and here: equal scores, equal run ids, and a plugin that was found in the container."""
    evaluators = [task, "odd"]
    options = {"evaluators": evaluators, "progress": False, "limit": 3}
    there = lq.compare(
        str(tiny_model), ["fp32_baseline"], executor=f"modal({CPU}, budget=5)", store=place / "modal", **options
    )
    here = lq.compare(str(tiny_model), ["fp32_baseline"], executor=Here(), store=place / "local", **options)
    assert [run.status for run in there.runs.values()] == ["completed"] * 2, [r.failure for r in there.runs.values()]
    assert there.runs.keys() == here.runs.keys()
    for run_id, run in there.runs.items():
        assert run.measurements == here.runs[run_id].measurements
        assert lq.Store(place / "modal").samples(run) == lq.Store(place / "local").samples(here.runs[run_id])
    (odd,) = (run for run in there.runs.values() if run.experiment.evaluator.label == "odd")
    told, root = odd.details["odd"], server.containers[-1].root
    assert told["module"] == str(root / "root" / "llmquant_odd")
    assert told["llmquant"] == str(root / "root" / "llmquant" / "__init__.py")
    assert told["metadata"] == [str(root / "root" / "llmquant_odd-1.0.dist-info")]
    assert told["words"] == ["odd", "even"]
    secret = server.secrets["huggingface-secret"]["HUGGINGFACE_TOKEN"]
    assert told["token"] == hashlib.sha256(secret.encode()).hexdigest()  # it would be blanked
    assert told["hub"] == str(root / "cache" / "hf")
    assert told["cache"].startswith(str(root / "tmp"))
    assert odd.provenance["executor"] == "modal"


@pytest.mark.slow
def test_another_machine_attaches_to_a_study(server: ModalServer, tiny_model: Path, place: Path, job: Job):
    """It was submitted to a standing app by a program that has let go; only its id is known there."""
    executor = f"modal({CPU}, budget=5, volume=shared)"
    (name,) = ModalExecutor(gpu="none", cpus=1, memory_gib=1, max_parallel=1, volume="shared").deploy([job])
    apps = len(server.of("AppCreate"))
    study = lq.Study.from_json(
        {"schema": 1, "models": [str(tiny_model)], "quantizers": ["fp32_baseline"], "evaluators": ["odd"]}
    )
    study_id = lq.submit_study(study, executor=executor, store=place / "first").study_id
    assert [app.name for app in server.apps.values()][-1] == name
    assert len(server.of("AppCreate")) == apps
    found = lq.attach(study_id, executor=executor, store=place / "second")
    assert [run.status for run in found.runs.values()] == ["completed"]
    (record,) = (place / "second" / "studies" / study_id / "jobs").glob("*.json")
    assert 0 < JobRecord.read(record).dollars < 0.1


class Breaks(api.Quiet):
    """Agrees to everything, and fails before anything is run."""

    def agree(self, offer: Offer) -> bool:
        return True

    def progress(self) -> NoReturn:
        raise RuntimeError("between taking up and running")


@pytest.mark.slow
def test_who_only_asks_cancels_no_job(server: ModalServer, tiny_model: Path, place: Path):
    """After a plan, a refusal, a refused budget and an error, what somebody else submitted still runs."""
    volume = f"modal({CPU}, volume=untouched"
    study, store = lq.Study.of(tiny_model, ["fp32_baseline", "bf16_baseline"], ["odd"]), place / "untouched"
    study_id = lq.submit_study(study, executor=f"{volume}, budget=5)", store=store).study_id
    second = store / "studies" / study_id / "jobs" / "2.json"
    write_json(second, {**json.loads(second.read_text()), "ended": True})  # something is left to be agreed to
    before = len(server.of("FunctionCallCancel"))
    preview(study, executor=f"{volume}, budget=5)", store=store)
    with pytest.raises(RequestError, match="the cost was not confirmed"):
        lq.run_study(study, executor=f"{volume})", store=store)
    with pytest.raises(RequestError, match="budget"):
        lq.run_study(study, executor=f"{volume}, budget=0.001)", store=store)
    with pytest.raises(RuntimeError, match="between"):
        lq.run_study(study, executor=f"{volume}, budget=5)", store=store, ui=Breaks())
    assert len(server.of("FunctionCallCancel")) == before
    found = lq.attach(study_id, executor=f"{volume}, budget=5)", store=store)
    assert [run.status for run in found.runs.values()] == ["completed"]
    ModalExecutor(gpu="none", volume="untouched").cancel(JobRecord.read(second).job_id)  # nobody waits for it


@pytest.mark.skipif(importlib.util.find_spec("mteb") is not None, reason="mteb is installed")
def test_a_benchmark_of_mteb_needs_no_mteb_here(place: Path):
    """It becomes its tasks, in the version that the image then has; a task that mteb does not have is refused."""
    executor = ModalExecutor(gpu="L40S", budget=5)
    study = lq.Study.of("random", ["fp32_baseline"], ["mteb(ViDoRe(v1))"])
    planned = resolve(study, registry(), Cache.default(), executor)
    assert len(planned.evaluators) == 10
    assert known_mteb(Cache.default()).version == modal_image.TESTED["mteb"]
    with pytest.raises(UnknownNameError, match=r"mteb .* has no task or benchmark 'ViDoRe\(v9\)'"):
        lq.compare("random", ["fp32_baseline"], ["mteb(ViDoRe(v9))"], executor=executor, store=place / "no")


def submit(executor: ModalExecutor, job: Job, place: Path, name: str) -> tuple[str, Path]:
    """Submit a job without a scheduler; return its id and the store."""
    store = place / name
    record = store / "studies" / "study" / "jobs" / "1.json"
    record.parent.mkdir(parents=True)
    write_json(record.parent.parent / "study.json", {})
    write_json(record, JobRecord(job).to_json())
    return executor.submit(record, store), store


@pytest.fixture
def opened() -> Iterator[Callable[[ModalExecutor], ModalExecutor]]:
    """Close executors afterwards, also when a test fails."""
    with contextlib.ExitStack() as executors:
        yield lambda executor: executors.enter_context(contextlib.closing(executor))


def test_what_is_committed_between_two_looks_comes_with_the_next(server: ModalServer, place: Path):
    """A journal is never newer than the list of runs of the same job."""
    volume, key = modal.Volume.from_name("between", create_if_missing=True), new_key("study", 1, 0, 60)
    volume.hydrate()
    journal, home = Path("studies", "study", "jobs", "1.journal"), place / "between"
    there = server.volume("between") / "jobs" / key / "store" / journal
    there.parent.mkdir(parents=True)
    there.write_text("first\n")

    def list_then_commit(*arguments: object, **options: object) -> list[object]:
        entries = list(volume.iterdir(*arguments, **options))
        there.write_text("first\nsecond\n")
        return entries

    early = SimpleNamespace(iterdir=list_then_commit, read_file_into_fileobj=volume.read_file_into_fileobj)
    for source, found in ((early, "first\n"), (volume, "first\nsecond\n")):
        assert fetch(source, key, home, ended=False) == (True, True)
        assert (home / journal).read_text() == found


def test_a_container_that_modal_ends_at_its_timeout_is_lost(server: ModalServer, job: Job, place: Path, opened):
    """It is reported as that, and its time counts as spent."""
    executor = opened(ModalExecutor(gpu="none", timeout=60, budget=1))
    server.second = 0.02
    try:
        job_id, store = submit(executor, job, place, "timeout")
        end = time.time() + 300
        while executor.collect(job_id, store) in ("queued", "running"):
            assert time.time() < end
            time.sleep(0.2)
    finally:
        server.second = 1.0
    assert executor.collect(job_id, store) == "lost"
    assert "at its timeout" in executor.why_lost(job_id)
    assert executor.dollars(job_id) > 0
    assert not (server.volume("llmquant") / "jobs" / job_id.partition("/")[2] / "packed").exists()


def test_what_is_spent_and_promised_leaves_less_time_for_the_next_job(
    server: ModalServer, job: Job, place: Path, opened
):
    """A job that is started again stays within what was agreed to, and one for which nothing is left is refused."""
    executor = opened(ModalExecutor(gpu="none", timeout=3600, yes=True))
    offer = executor.check([job])
    assert offer.agreed
    assert executor.dollars(submit(executor, job, place, "promised")[0]) is None
    with pytest.raises(RequestError, match="spent or reserved"):
        submit(executor, job, place, "refused")
    executor.close()
    for call in server.calls.values():
        assert call.output is not None


def test_a_job_that_was_left_is_not_ended(server: ModalServer, job: Job, place: Path, opened):
    """Its app stands, whatever becomes of the program; nothing is cancelled."""
    executor = opened(ModalExecutor(gpu="none", budget=5))
    job_id, _ = submit(executor, job, place, "left")
    cancelled = len(server.of("FunctionCallCancel"))
    executor.leave(job_id)
    executor.close()
    assert server.is_deployed(list(server.apps.values())[-1])
    assert len(server.of("FunctionCallCancel")) == cancelled
    assert not server.of("AppStop")
    assert server.calls[job_id.partition("/")[0]].output is None
    ModalExecutor(gpu="none").cancel(job_id)


def test_modal_is_asked_for_what_the_options_say(server: ModalServer, job: Job, opened):
    """Image, sources, secret, Volume, GPUs and limits, as they reach Modal; no container is started."""
    options = {"gpu": ("L40S", "H100:2"), "timeout": 900, "max_parallel": 3, "cpus": 2, "memory_gib": 10}
    executor = opened(ModalExecutor(**options, packages=["tqdm==4.67.1"], volume="asked", budget=100))
    calls, plan = len(server.calls), modal_image.plan_for([job], executor.options)
    executor._function(plan)
    executor.close()
    assert len(server.calls) == calls
    request = server.of("FunctionCreate")[-1]
    ranked = [x.function for x in request.function_data.ranked_functions]
    assert [(f.resources.gpu_config.gpu_type, f.resources.gpu_config.count) for f in ranked] == [
        ("L40S", 1),
        ("H100!", 2),
    ]
    function = request.function_data
    assert (function.module_name, function.function_name) == ("llmquant.executors.modal.worker", "run_job")
    assert function.timeout_secs == 900
    assert function.autoscaler_settings.max_containers == 3
    assert {(f.resources.milli_cpu, f.resources.memory_mb) for f in ranked} == {(2000, 10240)}
    made = server.functions[list(server.functions)[-1]]
    assert [m.mount_path for m in made.volume_mounts] == ["/cache"]
    assert made.volume_mounts[0].volume_id == server.volumes["asked"]
    assert list(made.secret_ids) == ["st-huggingface-secret"]
    lines = commands(server, made.image_id)
    assert any(line.startswith(f"FROM python:{RUNNING}") for line in lines), lines
    (install,) = (line for line in lines if "uv pip install" in line)
    assert "tqdm==4.67.1" in install
    assert not any("+cpu" in line for line in lines)
    assert any(pin.startswith("torch==") for pin in plan.pins)
    assert all(pin in install for pin in plan.pins)
    assert any("apt-get install" in line and "gcc" in line for line in lines)
    assert "ENV LLMQUANT_VOLUME=/cache" in " ".join(lines).replace('"', "").replace("'", "")
    files = {name for mount in made.mount_ids for name in server.mounts[mount]}
    assert {
        "/root/llmquant_odd/words.json",
        "/root/llmquant_odd-1.0.dist-info/entry_points.txt",
        "/root/llmquant/executors/modal/worker.py",
    } <= files


def commands(server: ModalServer, image_id: str) -> list[str]:
    """List the build commands of an image and of those it is built on."""
    image = server.images[image_id]
    below = [line for base in image.base_images for line in commands(server, base.image_id)]
    return [*below, *image.dockerfile_commands]


@pytest.fixture
def nothing_is_started(server: ModalServer) -> Iterator[None]:
    """Fail if an app or a call was made."""
    before = (len(server.of("AppCreate")), len(server.calls))
    yield
    assert (len(server.of("AppCreate")), len(server.calls)) == before


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let the client read its account anew, now and afterwards."""
    from modal.client import _Client

    _Client._client_from_env = None
    yield monkeypatch
    _Client._client_from_env = None


@pytest.mark.usefixtures("nothing_is_started")
class TestRefusals:
    """Nothing that costs is started when a request is wrong."""

    def test_no_token(self, job: Job, stranger: pytest.MonkeyPatch):
        """The hint says how to get one."""
        stranger.delenv("MODAL_TOKEN_ID")
        stranger.delenv("MODAL_TOKEN_SECRET")
        with pytest.raises(RequestError, match="modal token new"):
            ModalExecutor(gpu="none", budget=5).check([job])

    def test_a_wrong_token(self, job: Job, server: ModalServer, place: Path, stranger: pytest.MonkeyPatch):
        """Modal's own message is reported."""
        from modal_server import account

        for name, value in account(server.url, ("ak-wrong", "as-wrong"), place).items():
            stranger.setenv(name, value)
        with pytest.raises(RequestError, match="malformed"):
            ModalExecutor(gpu="none", budget=5).check([job])

    def test_a_token_that_is_gone_makes_no_job_lost(self, stranger: pytest.MonkeyPatch, place: Path):
        """It is then unknown whether the job continues."""
        stranger.delenv("MODAL_TOKEN_ID")
        stranger.delenv("MODAL_TOKEN_SECRET")
        with pytest.raises(RequestError, match="modal token new"):
            ModalExecutor(gpu="none").collect("fc-1/study-1-1700000000-3600-abcdef12", place / "no")

    def test_no_such_secret(self, job: Job):
        """The hint has the command that makes it."""
        with pytest.raises(RequestError, match="modal secret create other-secret"):
            ModalExecutor(gpu="none", budget=5, secret="other-secret").check([job])

    def test_an_unknown_gpu(self, tiny_model: Path):
        """It is refused with the nearest that there is, before a model is looked at."""
        with pytest.raises(UnknownNameError, match="L40S"):
            lq.compare(str(tiny_model), ["fp32_baseline"], ["odd"], executor="modal(gpu=L40, budget=5)")

    def test_a_budget_that_is_too_small(self, tiny_model: Path, place: Path):
        """The worst case and the budget are named."""
        with pytest.raises(OptionError, match=r"budget is \$0.10"):
            lq.compare(
                str(tiny_model), ["fp32_baseline"], ["odd"], executor="modal(gpu=L40S, budget=0.1)", store=place / "no"
            )

    def test_nobody_agreed(self, tiny_model: Path, place: Path):
        """From Python, a budget or a yes is needed."""
        with pytest.raises(RequestError, match="budget="):
            lq.compare(str(tiny_model), ["fp32_baseline"], ["odd"], executor="modal(gpu=L40S)", store=place / "no")

    def test_a_plugin_that_cannot_be_shipped(self, job: Job, place: Path):
        """Code that was compiled for this machine does not travel."""
        compiled = place / "site" / "llmquant_odd" / "fast.so"
        compiled.write_bytes(b"")
        try:
            with pytest.raises(UnsupportedError, match=r"fast\.so"):
                ModalExecutor(gpu="none", budget=5).check([job])
        finally:
            compiled.unlink()

    def test_another_python(self, job: Job):
        """Versions that are pinned here may not exist there."""
        with pytest.raises(UnsupportedError, match=RUNNING):
            ModalExecutor(gpu="none", budget=5, python_version="3.9").check([job])

    def test_a_python_that_modal_has_not(self, job: Job, monkeypatch: pytest.MonkeyPatch):
        """It is refused rather than replaced by another."""
        monkeypatch.setattr(modal_image, "PYTHON_VERSIONS", ("3.10",))
        with pytest.raises(UnsupportedError, match=RUNNING):
            ModalExecutor(gpu="none", budget=5).check([job])

    def test_gigabytes_of_local_files(self, job: Job, place: Path):
        """A checkpoint is sent only if it is small or that was asked for."""
        large = place / "large"
        large.mkdir()
        with (large / "model.safetensors").open("wb") as stream:
            stream.truncate(3 * 2**30)
        sent = Job("study", 1, {**job.model, "source": str(large)}, job.experiments, executor="modal")
        with pytest.raises(UnsupportedError, match=r"3\.0 GiB"):
            ModalExecutor(gpu="none", budget=5).check([sent])
        ModalExecutor(gpu="none", budget=5, ship_model=True).check([sent])


@pytest.mark.slow
@pytest.mark.skipif("LLMQUANT_LIVE_MODAL" not in os.environ, reason="costs money: set LLMQUANT_LIVE_MODAL=DOLLARS")
def test_a_study_runs_on_the_real_modal(tiny_model: Path, tmp_path: Path, stranger: pytest.MonkeyPatch):
    """A tiny model on the cheapest GPU, within the dollars that the variable allows; the token is in ~/.modal.toml."""
    for name in ("MODAL_SERVER_URL", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_CONFIG_PATH"):
        stranger.delenv(name)
    executor = f"modal(gpu=T4, timeout=900, budget={os.environ['LLMQUANT_LIVE_MODAL']}, secret='')"
    found = lq.compare(
        str(tiny_model), ["bf16_baseline"], ["memory"], executor=executor, store=tmp_path, progress=False
    )
    assert [run.status for run in found.runs.values()] == ["completed"]


@pytest.mark.parametrize("error", [modal.exception.ServiceError, modal.exception.ConnectionError])
def test_modals_own_errors_in_a_container_end_the_job(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    """Raised unchanged by the client, they would look like a lost connection, and the study would wait forever."""
    from llmquant.executors.modal.worker import Order, run_job

    def reload() -> NoReturn:
        raise error("Internal Server Error")

    monkeypatch.setattr(modal.Volume, "from_name", lambda name: SimpleNamespace(reload=reload))
    with pytest.raises(RuntimeError, match="Internal Server Error") as raised:
        run_job(Order(volume="llmquant", key="key", study="study", number=1, timeout=60))
    assert not isinstance(raised.value, modal.exception.Error)
