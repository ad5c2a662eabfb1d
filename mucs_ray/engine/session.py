"""This module starts Ray, or joins it, quietly: there is one session for each command.

Without an address a private Ray is started on this machine, bound to loopback, and ended with the command. With
RAY_ADDRESS or an address (as `ray job submit` sets it) the existing cluster is joined and nothing of it is changed.
"""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less for each training; this machine is never preempted
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
}
DROPPED_VARIABLES = (
    "PYTHONDONTWRITEBYTECODE",  # without .pyc files every Ray process starts three times slower
    "MUCS_RAY_MAX_CPUS",  # these describe a cluster that this machine may be the head of
    "MUCS_RAY_MAX_GPUS",
)
QUIET_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_COLOR_PREFIX": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}
RESOURCES = ("CPU", "GPU")
REACH_S = 10.0
ACTOR_CPUS, READER_CPUS = 0.9, 0.1
"""A worker leaves a tenth of each CPU to the readers that feed it: if it took all, Ray Data would wait for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """These are the resources of the session, and how the recipe wants them used (`engine.*`).

    CPUs and GPUs are those that are present now, or more if an autoscaler can bring them: an autoscaler brings a node
    only when work asks for what is not present yet.
    """

    cpus: int
    gpus: int
    nodes: int
    """The number of nodes that are alive now."""
    slots: int
    """The training workers that can be placed at once: one for each GPU, or on each node as many as fit on its CPUs."""
    grows: bool = False
    """Whether there can be more resources than there are now."""
    engine: EngineConfig = field(default_factory=EngineConfig)

    @classmethod
    def now(cls, engine: EngineConfig | None = None) -> "Cluster":
        """Return the cluster that this process is connected to as it is now. Nodes come and go, so callers ask for each
        stage.
        """
        nodes = [node["Resources"] for node in node_infos()]
        present = {name: sum(int(node.get(name, 0)) for node in nodes) for name in RESOURCES}
        cpus, gpus = (max(present[name], max_autoscaled(name)) for name in RESOURCES)
        grows = gpus > present["GPU"] or cpus > present["CPU"]
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
        """Return how many processes can compute side by side: one for each GPU or share of one, or one for each CPU."""
        return self.gpus * int(1 / self.engine.gpu_share) or self.cpus

    @property
    def processor(self) -> str:
        """Return "GPU" or "CPU", the processor that a worker has one or a share of."""
        return "GPU" if self.gpus else "CPU"

    @property
    def worker_options(self) -> dict[str, float]:
        """Return the resources of one worker, as Ray's options."""
        return {"num_cpus": ACTOR_CPUS, "num_gpus": self.engine.gpu_share if self.gpus else 0}


def max_autoscaled(kind: str) -> int:
    """Return the CPUs or GPUs that there can be with those that an autoscaler may bring, or 0 if it is not known.

    Ray 2.60 knows it for some hosted clusters only (https://github.com/ray-project/ray/pull/63012); for others the
    environment says it: MUCS_RAY_MAX_CPUS, MUCS_RAY_MAX_GPUS.
    """
    from ray._private.state import state  # there is no public name for it

    limit = os.environ.get(f"MUCS_RAY_MAX_{kind}S", "0")
    if not limit.isdecimal():
        raise MachineError(f"MUCS_RAY_MAX_{kind}S is {limit!r}; expected the number of {kind}s that there can be")
    return int(limit) or int((state.get_max_resources_from_cluster_config() or {}).get(kind, 0))


def await_worker(on_wait: Callable[[], None]) -> None:
    """Return once there is a CPU or GPU to plan with, or it is known what can come.

    `on_wait` is called if that has to be waited for. The task that is waited for makes an autoscaler bring a first
    worker.
    """
    import ray

    while not any(node["Resources"].get(kind) for node in node_infos() for kind in RESOURCES) and not any(
        map(max_autoscaled, RESOURCES)
    ):
        on_wait()
        ray.get(ray.remote(num_cpus=READER_CPUS)(lambda: None).remote())


def node_infos() -> list[dict[str, Any]]:
    """Return what Ray says of each node of the cluster that is alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def alive_node_ids() -> set[str]:
    """Return the ids of the nodes of the cluster that are alive."""
    return {node["NodeID"] for node in node_infos()}


def draining_node_ids() -> set[str]:
    """Return the ids of nodes that Ray has announced will be taken away (spot machines)."""
    from ray._private.state import state  # there is no public name for it

    return set(state.get_draining_nodes())


@contextmanager
def session(address: str | None = None, *, verbose: bool = False) -> Iterator[Cluster]:
    """Start or join Ray for the duration of a `with` block."""
    address = cluster_address(address)
    if not verbose:
        os.environ.update(QUIET_ENVIRONMENT)
    if address == "local":
        os.environ.update(LOCAL_ENVIRONMENT)
        for name in DROPPED_VARIABLES:
            os.environ.pop(name, None)
    import ray  # after the environment is set: Ray reads it when it is imported

    if not verbose:
        for name in ("ray", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        drop_warnings_of_many_processes()
    level = logging.INFO if verbose else logging.ERROR
    with nullcontext() if verbose else stderr_held_back():
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
    """Raise MachineError if nothing listens at HOST:PORT; Ray itself would try for a quarter of an hour, in silence."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return  # e.g. "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise MachineError(f"no Ray cluster answers at {address} ({error}); give the HOST:PORT of its head") from None


@contextmanager
def stderr_held_back() -> Iterator[None]:
    """Hold back what Ray's C++ side writes to stderr while it starts, and show it only if the start fails."""
    sys.stderr.flush()
    stderr_copy = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(stderr_copy, captured.read())
            raise
        finally:
            os.dup2(stderr_copy, 2)
            os.close(stderr_copy)


def drop_warnings_of_many_processes() -> None:
    """Drop Raylet's warning of 8 processes on 2 CPUs, which two trainings at once have; there is no switch for that
    line.
    """
    from ray._private import worker

    show = worker.print_to_stdstream

    def show_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as Ray's own
        if not any("worker processes have been started" in line for line in data.get("lines", ())):
            show(data, *arguments, **options)

    worker.print_to_stdstream = show_others


def configure_ray_data() -> None:
    """Switch off Ray Data's progress output and its limits on units; it sets up its loggers when it is imported."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a unit is never cut, however large its images are
    context.execution_no_progress_timeout_s = -1  # the watch ends what hangs; a large unit may take hours
    context.max_consecutive_actor_init_deaths = 10  # a node may go while a scorer loads its models
    if os.environ.get("RAY_BACKEND_LOG_LEVEL") == QUIET_ENVIRONMENT["RAY_BACKEND_LOG_LEVEL"]:
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def start_local(*, verbose: bool, level: int) -> None:
    """Start a private Ray, whose processes inherit the environment of workers.

    With a `runtime_env`, as on a cluster, Ray would start every worker through two more processes: 0.5 s of CPU.
    """
    import ray

    with changed_environment(worker_environment()), dashboard_without_a_cloud():
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=usable_cpus(),
            log_to_driver=verbose,
            logging_level=level,
        )


@contextmanager
def changed_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of a `with` block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def dashboard_without_a_cloud() -> Iterator[None]:
    """Give Ray's dashboard process a HOME that says "not in a cloud", so that it does not probe for one.

    Ray starts that process even without a dashboard. There is no switch for the probe, and no other process needs the
    HOME.
    """
    from ray._private import ray_constants, services

    start = services.start_ray_process

    def start_at_home(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as Ray's own
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD:
            options["env_updates"] = {**(options.get("env_updates") or {}), "HOME": fake_home}
        return start(command, process_type, *arguments, **options)

    with tempfile.TemporaryDirectory(prefix="mucs-ray-home-") as fake_home:
        (Path(fake_home) / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        services.start_ray_process = start_at_home
        try:
            yield
        finally:
            services.start_ray_process = start


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, by affinity and by the quota of its container."""
    from ray._private.utils import get_num_cpus  # reads the quota; there is no public name for it

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(get_num_cpus())))


def worker_environment() -> dict[str, str]:
    """Return the environment variables of workers.

    A worker has one thread: there are as many workers as CPUs, and the bits of a sum depend on the number of threads.
    On a GPU they depend on cuBLAS' workspace, which training needs to be fixed (training/numerics.py). The settings of
    this package (MUCS_RAY_...) go along, so that workers look for weights and caches where the user said.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith("MUCS_RAY_")}
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **settings, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
