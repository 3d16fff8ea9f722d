"""The app on Modal that runs jobs: its description and its deployment."""

from __future__ import annotations

import hashlib
from typing import Any

from llmquant.errors import RequestError
from llmquant.executors.modal.image import ImagePlan, content_digest
from llmquant.executors.modal.options import ModalOptions
from llmquant.executors.modal.worker import MOUNT_VARIABLE, run_job

MOUNT = "/cache"


def build_app(plan: ImagePlan, options: ModalOptions) -> Any:  # Any: modal.App
    """Build the app for Modal's client without sending anything."""
    import modal

    image = modal.Image.debian_slim(python_version=plan.python_version).apt_install(*plan.system)
    image = image.uv_pip_install(*plan.pins).env({MOUNT_VARIABLE: MOUNT, "HF_HOME": f"{MOUNT}/hf"})
    for source in plan.sources:
        local, remote = str(source.local), str(source.remote)
        if source.local.is_dir():
            image = image.add_local_dir(local, remote, ignore=["**/__pycache__", "**/.*", "**/*.pyc"])
        else:
            image = image.add_local_file(local, remote)
    app = modal.App(standing_name(plan, options), include_source=False)
    gpus = [gpu.asked for gpu in options.gpus if gpu.count]
    app.function(
        image=image,
        gpu=gpus if len(gpus) > 1 else gpus[0] if gpus else None,
        timeout=options.timeout,
        cpu=(float(options.cpus), float(options.cpus)),
        memory=(options.memory_gib * 1024, options.memory_gib * 1024),
        volumes={MOUNT: modal.Volume.from_name(options.volume, create_if_missing=True)},
        secrets=[modal.Secret.from_name(options.secret)] if options.secret else [],
        max_containers=options.max_parallel,
        retries=0,
        # An idle container costs money; 2 seconds is the minimum that Modal allows.
        scaledown_window=2,
    )(run_job)
    return app


def standing_name(plan: ImagePlan, options: ModalOptions) -> str:
    """Name the app for such jobs; a different image, GPU or limit gives a different app."""
    gpus = [gpu.asked for gpu in options.gpus]
    limits = (gpus, options.timeout, options.cpus, options.memory_gib, options.max_parallel)
    digest = hashlib.sha256(repr((content_digest(plan), limits, options.volume, options.secret)).encode()).hexdigest()
    return f"{options.app[:40]}-{digest[:12]}"


def deploy(plan: ImagePlan, options: ModalOptions) -> str:
    """Deploy an app that stays until it is stopped; jobs with its image and GPU start without building the image.

    The app costs nothing while no job runs. Stop it with ``modal app stop NAME``. An ephemeral app would not work:
    Modal keeps only the last call of a detached app.

    Returns:
        The app's name.

    Raises:
        RequestError: if Modal refuses.
    """
    import modal

    name = standing_name(plan, options)
    try:
        build_app(plan, options).deploy()
    except modal.exception.Error as error:
        raise RequestError(f"Modal did not deploy {name}: {error}") from error
    return name


def standing(plan: ImagePlan, options: ModalOptions) -> Any | None:  # Any: modal.Function
    """Return the function of the app deployed for such jobs; ``None`` if no such app is deployed."""
    import modal

    function = modal.Function.from_name(standing_name(plan, options), run_job.__name__)
    try:
        function.hydrate()
    except modal.exception.NotFoundError:
        return None
    return function
