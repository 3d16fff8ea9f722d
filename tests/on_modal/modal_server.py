"""A stand-in of Modal on 127.0.0.1: it speaks Modal's protocol and runs containers as processes of this machine.

The client and the container's entry point are Modal's own. A container gets its mounts in a folder that stands for its
root, a copy of the Volume that only `commit` and `reload` keep up with the others', the secret as environment
variables, and ends at its function's timeout. What has no handler is answered with made-up ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.server import Server
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

TOKEN = ("ak-standin", "as-standin")
BLOCK_BYTES = 8 * 2**20


@dataclass
class App:
    """An app, and what was said about it."""

    state: int
    name: str = ""
    functions: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """One input of a function, and what came of it."""

    function_id: str
    input: api_pb2.FunctionInput
    given: bool = False
    container: Container | None = None
    output: api_pb2.FunctionGetOutputsItem | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, status: int, text: str = "") -> None:
        """Give it a result, unless it has one."""
        result = api_pb2.GenericResult(status=status, exception=text)
        self.put(api_pb2.FunctionGetOutputsItem(result=result, idx=0, input_id="in-1"))

    def put(self, output: api_pb2.FunctionGetOutputsItem) -> None:
        self.output = self.output or output
        self.done.set()


@dataclass
class Container:
    """A process that stands for a container.

    Attributes:
        root: the folder that stands for its ``/``.
        views: what it sees of each volume, by id.
        seen: what that was when it was last made equal: modification time and size by path.
    """

    call_id: str
    root: Path
    views: dict[str, Path] = field(default_factory=dict)
    seen: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """End it and all its processes."""
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(self.process.pid).children(recursive=True)
                for process in family:  # the container itself last: what loses it would end by itself, a little later
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(family, timeout=10)
            self.process.kill()
            self.process.wait()


class ModalServer:
    """Modal, as far as this project uses it.

    Args:
        room: an empty folder for volumes and containers.
        second: how long a second of a function's timeout takes.
    """

    def __init__(self, room: Path, *, second: float = 1.0) -> None:
        self.room = room
        self.second = second
        self.requests: list[tuple[str, Message]] = []
        self.apps: dict[str, App] = {}
        self.calls: dict[str, Call] = {}
        self.containers: list[Container] = []
        self.functions: dict[str, api_pb2.Function] = {}
        self.images: dict[str, api_pb2.Image] = {}
        self.mounts: dict[str, dict[str, str]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.volumes: dict[str, str] = {}
        self.commits = 0
        self.at_a_time = 0
        self._content: dict[str, bytes] = {}
        self._blobs: dict[str, bytes] = {}
        self._names: dict[str, str] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self.url = ""

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> ModalServer:
        """Listen, in a thread."""
        room, blobs = self.room, self._blobs

        class Blocks(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, block = self.path.lstrip("/").rpartition("/")
                with (room / path).open("rb") as stream:
                    stream.seek(int(block) * BLOCK_BYTES)
                    data = stream.read(BLOCK_BYTES)
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_PUT(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                blobs[self.path.lstrip("/")] = data
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blocks)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        assert self._ready.wait(20)
        return self

    def stop(self) -> None:
        """End all containers."""
        for container in self.containers:
            container.kill()
        self._loop.call_soon_threadsafe(self._over.set)
        self._http.shutdown()
        self._http.server_close()

    def of(self, name: str) -> list[Any]:
        """List the requests of one kind."""
        return [request for kind, request in self.requests if kind == name]

    def volume(self, name: str) -> Path:
        """Return the folder that holds what was committed to a volume."""
        return self.room / self.volumes[name]

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server, self.url = await self._listen(None)
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _listen(self, container: Container | None) -> tuple[Server, str]:
        server = Server([service(self, container)])
        await server.start("127.0.0.1", 0)
        return server, f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"

    def _id(self, prefix: str) -> str:
        self._counts[prefix] += 1
        return f"{prefix}-{self._counts[prefix]}"

    # -- account ------------------------------------------------------------------------------------------------------

    async def client_hello(self, request: Any, _: Any) -> Message:
        return api_pb2.ClientHelloResponse(image_builder_version="2025.06")

    async def environment_get_or_create(self, request: Any, _: Any) -> Message:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06", webhook_suffix="")
        metadata = api_pb2.EnvironmentMetadata(name="main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def secret_get_or_create(self, request: Any, _: Any) -> Message:
        if request.deployment_name not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret {request.deployment_name!r} not found")
        self._names[f"st-{request.deployment_name}"] = request.deployment_name
        return api_pb2.SecretGetOrCreateResponse(secret_id=f"st-{request.deployment_name}")

    # -- apps, images, mounts -----------------------------------------------------------------------------------------

    async def app_create(self, request: Any, _: Any) -> Message:
        app_id = self._id("ap")
        self.apps[app_id] = App(request.app_state, request.description)
        return api_pb2.AppCreateResponse(app_id=app_id, app_page_url="http://127.0.0.1/app")

    async def app_get_by_deployment_name(self, request: Any, _: Any) -> Message:
        known = (app_id for app_id, app in self.apps.items() if self._is_deployed(app, request.name))
        return api_pb2.AppGetByDeploymentNameResponse(app_id=next(known, ""))

    async def app_publish(self, request: Any, _: Any) -> Message:
        app = self.apps[request.app_id]
        app.state, app.functions, app.name = request.app_state, dict(request.function_ids), request.name or app.name
        return api_pb2.AppPublishResponse(url="http://127.0.0.1/app", deployed_at=1.0)

    def is_deployed(self, app: App) -> bool:
        """Say whether an app stands."""
        return app.state == api_pb2.APP_STATE_DEPLOYED

    def _is_deployed(self, app: App, name: str) -> bool:
        return self.is_deployed(app) and app.name == name

    async def image_get_or_create(self, request: Any, _: Any) -> Message:
        key = request.image.SerializeToString(deterministic=True)
        image_id = f"im-{hashlib.sha256(key).hexdigest()[:12]}"
        self.images[image_id] = request.image
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id,
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=api_pb2.ImageMetadata(image_builder_version="2025.06"),
        )

    async def mount_put_file(self, request: Any, _: Any) -> Message:
        kind = request.WhichOneof("data_oneof")
        if kind is not None:
            data = request.data if kind == "data" else self._blobs.pop(request.data_blob_id)
            self._content[request.sha256_hex] = data
        return api_pb2.MountPutFileResponse(exists=request.sha256_hex in self._content)

    async def blob_create(self, request: Any, _: Any) -> Message:
        blob_id = self._id("bl")
        urls = api_pb2.UploadUrlList(items=[f"http://127.0.0.1:{self._http.server_port}/{blob_id}"])
        return api_pb2.BlobCreateResponse(upload_urls=urls, blob_ids=[blob_id])

    async def mount_batched_check_existence(self, request: Any, _: Any) -> Message:
        missing = [sha for sha in request.sha256_hex_hashes if sha not in self._content]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def mount_get_or_create(self, request: Any, _: Any) -> Message:
        mount_id = self._id("mo")
        self.mounts[mount_id] = {file.filename: file.sha256_hex for file in request.files}
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)

    # -- volumes ------------------------------------------------------------------------------------------------------

    async def volume_get_or_create(self, request: Any, _: Any) -> Message:
        name = request.deployment_name
        if name not in self.volumes:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"Volume {name!r} not found")
            self.volumes[name] = self._id("vo")
            self.volume(name).mkdir()
        metadata = api_pb2.VolumeMetadata(name=name)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=self.volumes[name], metadata=metadata)

    async def volume_put_files(self, request: Any, _: Any) -> Message | None:
        with self._lock:
            for file in request.files:
                path = self.room / request.volume_id / file.filename.lstrip("/")
                if path.exists() and request.disallow_overwrite_existing_files:
                    raise GRPCError(Status.ALREADY_EXISTS, f"{file.filename}: already exists")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._content[file.sha256_hex])
        return None

    async def volume_list_files(self, request: Any, _: Any) -> list[Message]:
        volume = self.room / request.volume_id
        folder = volume / request.path.strip("/")
        if not folder.exists():
            raise GRPCError(Status.NOT_FOUND, "No such file")
        entries = []
        with self._lock:
            for path in sorted(folder.rglob("*") if request.recursive else folder.glob("*")):
                kind = api_pb2.FileEntry.DIRECTORY if path.is_dir() else api_pb2.FileEntry.FILE
                size = 0 if path.is_dir() else path.stat().st_size
                entries.append(api_pb2.FileEntry(path=str(path.relative_to(volume)), type=kind, size=size))
        return [api_pb2.VolumeListFilesResponse(entries=entries)]

    async def volume_remove_file(self, request: Any, _: Any) -> Message | None:
        path = self.room / request.volume_id / request.path.lstrip("/")
        if not path.exists():
            raise GRPCError(Status.NOT_FOUND, "No such file")
        with self._lock:
            shutil.rmtree(path)
        return None

    async def volume_get_file2(self, request: Any, _: Any) -> Message:
        path = self.room / request.volume_id / request.path.lstrip("/")
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, "File not found")
        size = path.stat().st_size
        base = f"http://127.0.0.1:{self._http.server_port}/{path.relative_to(self.room)}"
        urls = [f"{base}/{block}" for block in range(-(-size // BLOCK_BYTES))]
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=0, len=size)

    async def volume_commit(self, request: Any, container: Any) -> Message:
        with self._lock:
            view, volume = container.views[request.volume_id], self.room / request.volume_id
            before, now = container.seen[request.volume_id], listing(view)
            for name in before.keys() - now.keys():
                (volume / name).unlink(missing_ok=True)
            for name in (name for name in now if now[name] != before.get(name)):
                (volume / name).parent.mkdir(parents=True, exist_ok=True)
                # A reader sees a commit whole; the client takes a file that is cut for one that ends in zeros.
                shutil.copy2(view / name, self.room / "committed", follow_symlinks=False)
                (self.room / "committed").replace(volume / name)
            container.seen[request.volume_id] = now
            self.commits += 1
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def volume_reload(self, request: Any, container: Any) -> Message | None:
        self._show(container, request.volume_id)
        return None

    def _show(self, container: Container, volume_id: str) -> None:
        view = container.views[volume_id]
        with self._lock:
            for link in [path for path in view.rglob("*") if path.is_symlink()]:
                link.unlink()  # copytree replaces files, but not links
            shutil.copytree(self.room / volume_id, view, symlinks=True, dirs_exist_ok=True)
            container.seen[volume_id] = listing(view)

    # -- functions and calls ------------------------------------------------------------------------------------------

    async def function_precreate(self, request: Any, _: Any) -> Message:
        function_id = request.existing_function_id or self._id("fu")
        return api_pb2.FunctionPrecreateResponse(
            function_id=function_id, handle_metadata=api_pb2.FunctionHandleMetadata(function_name=request.function_name)
        )

    async def function_create(self, request: Any, _: Any) -> Message:
        function_id = request.existing_function_id or self._id("fu")
        ranked = request.function_data.ranked_functions
        function = api_pb2.Function()
        function.CopyFrom(ranked[0].function if ranked else request.function)
        if ranked:
            function.module_name = function.module_name or request.function_data.module_name
            function.function_name = function.function_name or request.function_data.function_name
            function.timeout_secs = function.timeout_secs or request.function_data.timeout_secs
        self.functions[function_id] = function
        response = api_pb2.FunctionCreateResponse(function_id=function_id, handle_metadata=self._handle(function_id))
        response.function.CopyFrom(function)
        response.function_data.CopyFrom(request.function_data)
        if not ranked:
            response.function_data.ranked_functions.add(rank=0).function.CopyFrom(function)
        return response

    async def function_get(self, request: Any, _: Any) -> Message:
        for app in self.apps.values():
            if self._is_deployed(app, request.app_name):
                function_id = app.functions[request.object_tag]
                response = api_pb2.FunctionGetResponse(
                    function_id=function_id, handle_metadata=self._handle(function_id)
                )
                response.function.ranked_functions.add(rank=0).function.CopyFrom(self.functions[function_id])
                return response
        raise GRPCError(Status.NOT_FOUND, f"can't find app {request.app_name}")

    async def function_map(self, request: Any, _: Any) -> Message:
        (item,) = request.pipelined_inputs
        call_id = self._id("fc")
        self.calls[call_id] = Call(request.function_id, item.input)
        task = asyncio.create_task(self._run(call_id))
        self._tasks.add(task)
        inputs = [api_pb2.FunctionPutInputsResponseItem(idx=0, input_id="in-1")]
        return api_pb2.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=inputs)

    async def function_get_outputs(self, request: Any, _: Any) -> Message:
        call = self.calls.get(request.function_call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, "no such call")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.done.wait(), max(request.timeout, 0.001))
        outputs = [call.output] if call.output else []
        return api_pb2.FunctionGetOutputsResponse(outputs=outputs, num_unfinished_inputs=int(not outputs))

    async def function_call_cancel(self, request: Any, _: Any) -> Message | None:
        call = self.calls[request.function_call_id]
        call.end(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED, "Function call was cancelled")
        if call.container is not None and request.terminate_containers:
            await asyncio.to_thread(call.container.kill)
        return None

    def _handle(self, function_id: str) -> Message:
        name = self.functions[function_id].function_name
        return api_pb2.FunctionHandleMetadata(function_name=name, definition_id=f"de-{function_id}")

    # -- containers ---------------------------------------------------------------------------------------------------

    async def container_heartbeat(self, request: Any, _: Any) -> Message:
        await asyncio.sleep(5)
        return api_pb2.ContainerHeartbeatResponse()

    async def function_get_inputs(self, request: Any, container: Any) -> Message:
        call = self.calls[container.call_id]
        if call.given:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        call.given = True
        item = api_pb2.FunctionGetInputsItem(input_id="in-1", function_call_id=container.call_id, input=call.input)
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def function_put_outputs(self, request: Any, container: Any) -> Message | None:
        for item in request.outputs:
            output = api_pb2.FunctionGetOutputsItem(
                input_id="in-1", idx=0, result=item.result, data_format=item.data_format
            )
            self.calls[container.call_id].put(output)
        return None

    async def task_result(self, request: Any, container: Any) -> Message | None:
        output = api_pb2.FunctionGetOutputsItem(input_id="in-1", idx=0, result=request.result)
        self.calls[container.call_id].put(output)
        return None

    async def _run(self, call_id: str) -> None:
        """Run one call in a container of its own, when there is room."""
        call = self.calls[call_id]
        function = self.functions[call.function_id]
        limit = function.autoscaler_settings.max_containers or function.concurrency_limit or 1000
        async with self._slots.setdefault(call.function_id, asyncio.Semaphore(limit)):
            if call.done.is_set():
                return
            call.container = container = Container(call_id, self.room / self._id("ta"))
            self.containers.append(container)
            server, url = await self._listen(container)
            await asyncio.to_thread(self._launch, container, call.function_id, url)
            if call.done.is_set():
                container.kill()
            assert container.process is not None
            running = [c for c in self.containers if c.process is not None and c.process.poll() is None]
            self.at_a_time = max(self.at_a_time, len(running))
            try:
                code = await asyncio.to_thread(container.process.wait, function.timeout_secs * self.second)
            except subprocess.TimeoutExpired:
                container.kill()
                text = f"Task's current input in-1 hit its timeout of {function.timeout_secs}s"
                call.end(api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT, text)
            else:
                call.end(api_pb2.GenericResult.GENERIC_STATUS_FAILURE, f"the container ended with exit code {code}")
            server.close()

    def _launch(self, container: Container, function_id: str, url: str) -> None:
        function, root = self.functions[function_id], container.root
        (root / "root").mkdir(parents=True)
        (root / "tmp").mkdir()
        for mount_id in function.mount_ids:
            for name, sha in self.mounts[mount_id].items():
                path = root / name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._content[sha])
        places = {}
        for mount in function.volume_mounts:
            container.views[mount.volume_id] = root / mount.mount_path.lstrip("/")
            places[mount.mount_path] = str(container.views[mount.volume_id])
            self._show(container, mount.volume_id)
        environment = {
            **{name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ},
            **self._image_environment(function.image_id, places),
            **{k: v for secret in function.secret_ids for k, v in self.secrets[self._names[secret]].items()},
            "HOME": str(root),
            "TMPDIR": str(root / "tmp"),
            "PYTHONPATH": str(root / "root"),
            "MODAL_SERVER_URL": url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": root.name,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(root / "arguments"),
        }
        arguments = api_pb2.ContainerArguments(
            task_id=root.name, function_id=function_id, app_id="ap-1", function_def=function
        )
        (root / "arguments").write_bytes(arguments.SerializeToString())
        with (root / "log").open("wb") as log:
            container.process = subprocess.Popen(
                [sys.executable, "-m", "modal._container_entrypoint"],
                cwd=root / "root",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _image_environment(self, image_id: str, places: dict[str, str]) -> dict[str, str]:
        """Read the ENV lines of an image and of those it is built on; paths into a volume become its folder's."""
        image = self.images[image_id]
        found: dict[str, str] = {}
        for base in image.base_images:
            found |= self._image_environment(base.image_id, places)
        for line in image.dockerfile_commands:
            if line.startswith("ENV "):
                name, _, value = line.removeprefix("ENV ").partition("=")
                value = value.strip("\"'")
                mount = next((m for m in places if value == m or value.startswith(f"{m}/")), None)
                found[name] = value if mount is None else places[mount] + value.removeprefix(mount)
        return {name: value for name, value in found.items() if not name.startswith(("UV_", "PIP_"))}


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """List the files of a folder: when and how large."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if not path.is_dir() or path.is_symlink():
                found[str(path.relative_to(folder))] = (path.lstat().st_mtime_ns, path.lstat().st_size)
    return found


def service(state: ModalServer, container: Container | None) -> ModalClientBase:
    """Make a service whose every call is recorded and answered by the state's method of its name, if there is one."""
    names = [name for name in dir(ModalClientBase) if not name.startswith("_")]
    handlers = type("Names", (ModalClientBase,), dict.fromkeys(names, lambda self, stream: None))().__mapping__()

    def method(name: str, reply_type: type[Message]) -> Any:
        async def handle(_: Any, stream: Any) -> None:
            request = await stream.recv_message()
            state.requests.append((name, request))
            if container is None and stream.metadata.get("x-modal-token-id") != TOKEN[0]:
                raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed")
            if name == "AppGetLogs":
                await asyncio.sleep(3600)
            known = getattr(state, snake_case(name), None)
            answer = await known(request, container) if known else None
            if answer is None:
                answer = made_up(reply_type())
            for message in answer if isinstance(answer, list) else [answer]:
                await stream.send_message(message)

        return handle

    methods = {path.rpartition("/")[2]: method(path.rpartition("/")[2], h.reply_type) for path, h in handlers.items()}
    made: ModalClientBase = type("Service", (ModalClientBase,), methods)()
    return made


def snake_case(name: str) -> str:
    """Return ``app_create`` for ``AppCreate``."""
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


def made_up(message: Message) -> Message:
    """Fill in the ids of an answer."""
    for field_ in message.DESCRIPTOR.fields:
        if field_.type == field_.TYPE_STRING and field_.name.endswith("_id") and not field_.is_repeated:
            setattr(message, field_.name, f"{field_.name[:2]}-1")
    return message


def account(url: str, token: tuple[str, str], room: Path) -> dict[str, str]:
    """Return the environment in which Modal's client knows who it is, and nothing else of this machine's user."""
    return {
        "MODAL_SERVER_URL": url,
        "MODAL_TOKEN_ID": token[0],
        "MODAL_TOKEN_SECRET": token[1],
        "MODAL_CONFIG_PATH": str(room / "none.toml"),
        "MODAL_LOGS_TIMEOUT": "1",
    }
