"""Starting Ray, or joining it, quietly: one session a command.

Without an address a private Ray is started on this machine, bound to loopback, and ended with the command. With
RAY_ADDRESS or an address (as `ray job submit` sets it) the existing cluster is joined and nothing of it is changed.
"""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mucs_ray.config.engine import EngineConfig
from mucs_ray.engine.address import cluster_address
from mucs_ray.errors import MachineError

LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # one machine, loopback only
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux: bind to 127.0.0.1
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away: a process less for each training
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
}
NOT_LOCAL = (
    "PYTHONDONTWRITEBYTECODE",  # without .pyc files every Ray process starts three times slower
    "MUCS_RAY_MAX_CPUS",  # what can come to a cluster that this machine may be the head of
    "MUCS_RAY_MAX_GPUS",
)
QUIET_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_COLOR_PREFIX": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}
KINDS = ("CPU", "GPU")
REACH_S = 10.0
ACTOR_CPUS, READER_CPUS = 0.9, 0.1
"""Of each CPU a worker leaves a tenth to the readers that feed it: if it took all, Ray Data would wait for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the session can use, and how (`engine.*` of the recipe).

    CPUs and GPUs are those that are there now, or more if an autoscaler can bring them: work that asks for what is not
    there yet is what makes it come.
    """

    cpus: int
    gpus: int
    nodes: int
    """Nodes that are there now."""
    slots: int
    """Training workers that can be placed at once: one a GPU, or on each node as many as fit on its CPUs."""
    grows: bool = False
    """Whether there can be more than there is now."""
    engine: EngineConfig = field(default_factory=EngineConfig)

    @classmethod
    def now(cls, engine: EngineConfig | None = None) -> "Cluster":
        """The cluster that this process is connected to, as it stands; nodes come and go, so ask for each stage."""
        nodes = [node["Resources"] for node in alive()]
        here = {name: sum(int(node.get(name, 0)) for node in nodes) for name in KINDS}
        cpus, gpus = (max(here[name], max_autoscaled(name)) for name in KINDS)
        grows = gpus > here["GPU"] or cpus > here["CPU"]
        on_cpus = cpus if grows else sum(int(node.get("CPU", 0) / ACTOR_CPUS) for node in nodes)
        return cls(
            cpus=max(1, cpus),
            gpus=gpus,
            nodes=len(nodes),
            slots=gpus or on_cpus,
            grows=grows,
            engine=engine or EngineConfig(),
        )

    @property
    def num_workers(self) -> int:
        """Processes that can compute side by side: one a GPU or share of one, or one a CPU."""
        return self.gpus * int(1 / self.engine.gpu_share) or self.cpus

    @property
    def processor(self) -> str:
        """What a worker has one of, or a share of: "GPU" or "CPU"."""
        return "GPU" if self.gpus else "CPU"

    @property
    def worker_options(self) -> dict[str, float]:
        """The resources of one worker."""
        return {"num_cpus": ACTOR_CPUS, "num_gpus": self.engine.gpu_share if self.gpus else 0}


def max_autoscaled(kind: str) -> int:
    """The CPUs or GPUs that there can be with those that an autoscaler may bring; 0 if nobody says.

    Ray 2.60 knows it of some hosted clusters alone (https://github.com/ray-project/ray/pull/63012); of others the
    environment tells: MUCS_RAY_MAX_CPUS, MUCS_RAY_MAX_GPUS.
    """
    from ray._private.state import state  # no public name tells

    limit = os.environ.get(f"MUCS_RAY_MAX_{kind}S", "0")
    if not limit.isdecimal():
        raise MachineError(f"MUCS_RAY_MAX_{kind}S is {limit!r}; expected the number of {kind}s that there can be")
    return int(limit) or int((state.get_max_resources_from_cluster_config() or {}).get(kind, 0))


def await_worker(tell: Callable[[], None]) -> None:
    """Come back once there is a CPU or GPU to plan with, or it is known what can come; `tell` if that is not so now.

    The task that is waited for is what makes an autoscaler bring a first worker.
    """
    import ray

    while not any(node["Resources"].get(kind) for node in alive() for kind in KINDS) and not any(
        map(max_autoscaled, KINDS)
    ):
        tell()
        ray.get(ray.remote(num_cpus=READER_CPUS)(lambda: None).remote())


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def alive_nodes() -> set[str]:
    """The ids of the nodes of the cluster."""
    return {node["NodeID"] for node in alive()}


def draining_nodes() -> set[str]:
    """The ids of nodes that have been told that they will be taken away (spot machines)."""
    from ray._private.state import state  # no public name tells

    return set(state.get_draining_nodes())


@contextmanager
def session(address: str | None = None, *, verbose: bool = False) -> Iterator[Cluster]:
    """Ray for the duration of a `with` block."""
    address = cluster_address(address)
    if not verbose:
        os.environ.update(QUIET_ENVIRONMENT)
    if address == "local":
        os.environ.update(LOCAL_ENVIRONMENT)
        for name in NOT_LOCAL:
            os.environ.pop(name, None)
    import ray  # after the environment is set: Ray reads it when it is imported

    if not verbose:
        for name in ("ray", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        drop_warnings_of_many_processes()
    level = logging.INFO if verbose else logging.ERROR
    with nullcontext() if verbose else errors_only():
        if address == "local":
            start_local(verbose=verbose, level=level)
        else:
            check_reachable(address)
            environment = {"env_vars": worker_environment()}
            ray.init(address=address, runtime_env=environment, log_to_driver=verbose, logging_level=level)
    try:
        yield Cluster.now()
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """MachineError if nothing listens at HOST:PORT: Ray itself would try for a quarter of an hour, in silence."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return  # "auto", say
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise MachineError(f"no Ray cluster answers at {address} ({error}); give the HOST:PORT of its head") from None


@contextmanager
def errors_only() -> Iterator[None]:
    """Keep what Ray's C++ side writes to stderr while it starts, and show it only if the start fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def drop_warnings_of_many_processes() -> None:
    """Raylet warns of 8 processes on 2 CPUs, which two trainings at once have; there is no switch for that line."""
    from ray._private import worker

    show = worker.print_to_stdstream

    def show_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as Ray's own
        if not any("worker processes have been started" in line for line in data.get("lines", ())):
            show(data, *arguments, **options)

    worker.print_to_stdstream = show_others


def quiet_data() -> None:
    """Ray Data without its own progress output; it sets its loggers up when it is imported."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a unit is never cut, however large its images are
    context.execution_no_progress_timeout_s = -1  # what hangs is our own to see: a large unit may take hours
    context.max_consecutive_actor_init_deaths = 10  # a node may go while a scorer loads its models
    if os.environ.get("RAY_BACKEND_LOG_LEVEL") == QUIET_ENVIRONMENT["RAY_BACKEND_LOG_LEVEL"]:
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def start_local(*, verbose: bool, level: int) -> None:
    """A private Ray whose processes see a HOME that says "not in a cloud", so that they do not probe for one."""
    import ray

    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="mucs-ray-home-") as calm:
        (Path(calm) / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        os.environ["HOME"] = calm
        try:
            environment = {**worker_environment(), **({"HOME": home} if home else {})}
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=usable_cpus(),
                runtime_env={"env_vars": environment},
                log_to_driver=verbose,
                logging_level=level,
            )
        finally:
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home


def usable_cpus() -> int:
    """CPUs this process may use, by affinity and by the quota of its container."""
    from ray._private.utils import get_num_cpus  # reads the quota; there is no public name for it

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(get_num_cpus())))


def worker_environment() -> dict[str, str]:
    """One thread a worker: there are as many workers as CPUs, and the bits of a sum depend on the number of threads. On
    a GPU they depend on cuBLAS' workspace, which training asks to be fixed (training/numerics.py).

    Our own settings (MUCS_RAY_...) go along, so that workers look for weights and caches where the user said.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith("MUCS_RAY_")}
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **own, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
