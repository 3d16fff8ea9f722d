"""The Ray cluster for a study's jobs: joining, starting, and its capacity."""

from __future__ import annotations

import functools
import os
from typing import Any

from llmquant.errors import MissingDependencyError, UnsupportedError
from llmquant.executors.ray.job import NAMESPACE, hardware
from llmquant.executors.ray.options import RayOptions
from llmquant.study.job import Device

_PROBE_S = 120.0
_AUTHENTICATION = "RAY_AUTH_MODE"


class Cluster:
    """A Ray cluster, joined on first use."""

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._own = False
        self._joined = False
        self._without_token = False

    def join(self) -> Any:  # Any: the package
        """Join the cluster, or start one; return Ray.

        Raises:
            MissingDependencyError: if Ray is not installed.
            UnsupportedError: if no cluster answers at the address.
        """
        ray = import_ray()
        if ray.is_initialized():
            return ray
        quiet: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False}  # Any: keywords of ray.init
        self._joined = True
        if self._options.address != "local":
            try:
                ray.init(address=self._options.address, **quiet)
            except ConnectionError as error:
                if self._options.address != "auto":
                    raise UnsupportedError(
                        f"no Ray cluster answers at {self._options.address}: {error}", hint="See `ray status`."
                    ) from error
            else:
                return ray
        self._own = True
        if _AUTHENTICATION not in os.environ:
            # Ray would write a token to ~/.ray, which a cluster for this process alone does not need.
            os.environ[_AUTHENTICATION] = "disabled"
            self._without_token = True
        ray.init(address="local", include_dashboard=False, **quiet)
        return ray

    def close(self) -> None:
        """Leave the cluster if it was joined here; a cluster started here ends."""
        if self._joined:
            import_ray().shutdown()
        if self._without_token:
            os.environ.pop(_AUTHENTICATION, None)

    @property
    def own(self) -> bool:
        """Return whether the cluster was started here and ends with this program."""
        self.join()
        return self._own

    @functools.cached_property
    def device(self) -> Device:
        """The device of the jobs."""
        has_gpus = self._resources.get("GPU", 0) > 0
        if self._options.device == "cuda" and not has_gpus:
            raise UnsupportedError("device=cuda, but the Ray cluster has no GPU", hint="See `ray status`.")
        return "cuda" if has_gpus and self._options.device != "cpu" else "cpu"

    @property
    def needs(self) -> dict[str, Any]:  # Any: Ray's options
        """The resources of a job, as Ray's options."""
        kind = {"accelerator_type": self._options.accelerator_type} if self._options.accelerator_type else {}
        return {"num_cpus": self._options.num_cpus, "num_gpus": self._num_gpus, **kind}

    def slots(self) -> int:
        """Return the maximum number of simultaneous jobs."""
        room = self._resources.get("CPU", 0) / self._options.num_cpus
        if self._num_gpus:
            room = min(room, self._resources.get("GPU", 0) / self._num_gpus)
        return max(1, min(int(room), self._options.max_parallel or int(room)))

    def roomy_nodes(self) -> list[str]:
        """List the ids of the machines large enough for a job, even if they are busy.

        Raises:
            UnsupportedError: if no machine is large enough.
        """
        needs = {"CPU": self._options.num_cpus, "GPU": self._num_gpus}
        if self._options.accelerator_type:
            needs[f"accelerator_type:{self._options.accelerator_type}"] = 0.001  # as Ray asks for it
        nodes = [node for node in self.join().nodes() if node["Alive"]]
        found = [n["NodeID"] for n in nodes if all(n["Resources"].get(name, 0) >= needs[name] for name in needs)]
        if not found:
            asked = ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)
            raise UnsupportedError(
                f"a job needs {asked}, but none of the {len(nodes)} machines of the Ray cluster has as much",
                hint="See `ray status`, or lower num_cpus and num_gpus, the resources per job.",
            )
        return found

    def hardware(self) -> str:
        """Name the hardware of all machines that may run a job."""
        ray = self.join()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # The task requests no CPU and no GPU, because the cluster may be busy.
        task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(hardware)
        asked = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                self.device, self._options.worker_threads
            )
            for node in self.roomy_nodes()
        ]
        return " or ".join(sorted(set(ray.get(asked, timeout=_PROBE_S))))

    def notices(self) -> tuple[str, ...]:
        """Report a cluster started here, and different GPU types, whose timings are not comparable."""
        kinds = sorted(k.partition(":")[2] for k in self._resources if k.startswith("accelerator_type:"))
        found = []
        if self.own and self._options.address == "auto":
            found.append("Ray: no running cluster was found, so a cluster was started on this machine")
        if self.device == "cuda" and len(kinds) > 1 and not self._options.accelerator_type:
            found.append(
                f"Ray: the cluster has different GPUs ({', '.join(kinds)}); choose a type with accelerator_type"
            )
        return tuple(found)

    @functools.cached_property
    def _resources(self) -> dict[str, float]:
        return dict(self.join().cluster_resources())

    @property
    def _num_gpus(self) -> float:
        if self._options.num_gpus is not None:
            return self._options.num_gpus
        return 1.0 if self.device == "cuda" else 0.0


def import_ray() -> Any:  # Any: the package
    """Import Ray on first use; the import takes about a second.

    Raises:
        MissingDependencyError: if Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError("ray is not installed", hint='Run: pip install "llmquant[ray]"') from error
    return ray
