"""This module trains and retrains through Ray Train, with any number of workers.

`run_training` is the whole work of one worker and does not use Ray; tests call it in a plain loop. The state is
published at the end of each epoch, so a lost worker, a lost driver and Ctrl-C all resume in the same way.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mucs_ray import storage
from mucs_ray.config.engine import LEAST_IMAGES
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.engine.attempts import heartbeat, heartbeats
from mucs_ray.engine.coordinator import (
    POLL_S,
    Coordinator,
    cancel_unfinished,
    last_line,
    mucs_error_in,
    new_coordinator,
    this_node,
)
from mucs_ray.engine.host import keep_freed_memory
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import ACTOR_CPUS, Cluster
from mucs_ray.errors import InputError, MucsError, RunFailed
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.store import checkpoint
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import load_state, model_facts, save_average, save_state
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.step import TrainState, WorkerContext, training

POST_INTERVAL_S = 0.5
STOP_TIMEOUT_S = 10.0
PLACEMENT_ATTEMPTS, GROWING_PLACEMENT_ATTEMPTS = 5, 60
"""The attempts, of a minute each, to place the workers before giving up; there are more where machines may still come.
Ray's own default is to try for ever.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A job holds everything that a worker needs; it is small and picklable."""

    dataset: Dataset
    stage: Stage
    model: ModelSpec
    train: TrainConfig
    seed: int
    removed: frozenset[int] = frozenset()
    """Training images to leave out (retraining)."""
    captures: bool = True
    """Whether a worker alone on a GPU captures its passes as a CUDA graph; changes no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun:
    """A run is a job, and the number of workers that share it."""

    job: TrainJob
    num_workers: int


def run_training(
    job: TrainJob, worker: WorkerContext, device: torch.device, post: Callable[[str, Any], None]
) -> TrainState:
    """Do one worker's share of a training, from the published state if there is one.

    It raises RunFailed if the validation loss is not finite.
    """
    keep_freed_memory()
    facts = {**model_facts(job.model), "seed": job.seed}
    state = fresh_state(job, device, captures=job.captures and worker.size == 1 and device.type == "cuda")
    load_state(job.stage, state)
    if worker.size > 1:
        worker = distribute(state, worker)
    model_adapter = adapter(job.model)
    codec, trainer = model_adapter.codec(torch.device("cpu")), model_adapter.trainer()
    assert trainer is not None, "a model that cannot be trained has no stage that trains"
    images = LocalImages(job.dataset, "train", codec=codec, removed=job.removed, on_unit=heartbeat)
    test = LocalImages(job.dataset, "test", codec=codec, on_unit=heartbeat)
    posted = 0.0
    updates = training(state, images, test, job.train, seed=job.seed, worker=worker, augment=trainer.augment)
    for update in updates:
        heartbeat()  # a captured pass calls no forward hook
        if worker.rank == 0 and time.monotonic() - posted > POST_INTERVAL_S:
            posted = time.monotonic()
            post("train", (update.step, update.loss.item()))
        if update.validation is None:
            continue
        if not torch.isfinite(torch.tensor(update.validation)):
            raise RunFailed(f"training diverged: validation loss {update.validation} after {update.step} updates")
        if worker.rank == 0:
            save_state(job.stage, state, facts)
            post("validation", (update.step, update.validation))
    if worker.rank == 0:
        save_average(job.stage, "last", state, {**facts, "images_seen": state.step * job.train.batch_size})
        post("result", {"updates": state.step, "best_loss": state.best_loss, "best_step": state.best_step})
    return state


def fresh_state(job: TrainJob, device: torch.device, *, captures: bool = False) -> TrainState:
    """Return initial weights from the name "train/init", which are the same for all trainings with the same seed."""
    denoiser = adapter(job.model).untrained(job.seed, device)
    assert denoiser is not None, "a model that cannot be trained has no stage that trains"
    denoiser.network.register_forward_pre_hook(lambda *_: heartbeat())  # a forward is a sign of life
    return TrainState.fresh(denoiser, job.train, captures=captures)


def distribute(state: TrainState, worker: WorkerContext) -> WorkerContext:
    """Let the workers average their gradients, and return the context of this one."""
    wrapped = ray.train.torch.prepare_model(state.live)

    def mean(values: torch.Tensor) -> torch.Tensor:
        on_device = values.to(next(state.live.parameters()).device)
        torch.distributed.all_reduce(on_device)
        return on_device.cpu() / worker.size

    return WorkerContext(rank=worker.rank, size=worker.size, wrapped=wrapped, mean=mean)


def train_worker(task: dict[str, Any]) -> None:
    """Run in each worker of Ray Train. Errors of this package are posted, not raised, because a retry would repeat
    them.
    """
    context = ray.train.get_context()
    coordinator: Coordinator = task["coordinator"]
    worker = WorkerContext(rank=context.get_world_rank(), size=context.get_world_size())
    device = ray.train.torch.get_device()
    try:
        with as_in_training(device), heartbeats(lambda: coordinator.post("alive", time.time())):
            run_training(task["job"], worker, device, lambda key, value: coordinator.post(key, value))
    except MucsError as error:
        coordinator.post_now("error", error)
    ray.train.report({})


def workers_for(train: TrainConfig, requested: int, cluster: Cluster, *, trainings: int = 1) -> int:
    """Return the requested number of workers, or a share of the GPUs (of CPUs at most 2) that divides the batch.

    The share is that of one of several `trainings` that run side by side. It raises InputError if there is no room.
    """
    if requested:
        if requested > cluster.slots:
            raise InputError(
                f"{requested} training workers are wanted (engine.train_workers, else as many as pretrained), but there"
                f" is room for {cluster.slots} on this cluster; set engine.train_workers"
            )
        if train.batch_size % requested:
            raise InputError(f"train.batch_size {train.batch_size} cannot be split over {requested} workers evenly")
        return requested
    on_gpus = min(cluster.gpus // trainings, train.batch_size // LEAST_IMAGES)
    max_workers = max(1, on_gpus) if cluster.gpus else min(2, cluster.cpus)
    return max(num for num in range(1, max_workers + 1) if train.batch_size % num == 0)


@ray.remote(num_cpus=0, max_retries=0)
def run_trainer(run: TrainRun, coordinator: Coordinator, folder: str, cluster: Cluster) -> None:
    """Run Ray Train in a process of its own, because in a thread of the driver it could not be ended before Ray is."""
    fs, path = storage.filesystem(folder)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": run.job, "coordinator": coordinator},
        scaling_config=ScalingConfig(
            num_workers=run.num_workers, use_gpu=cluster.gpus > 0, resources_per_worker=resources(cluster)
        ),
        run_config=RunConfig(
            name="run",
            storage_path=path,
            # pyarrow's own S3 client would not use the user's settings of fsspec
            storage_filesystem=None if storage.is_local(folder) else PyFileSystem(FSSpecHandler(fs)),
            failure_config=FailureConfig(
                max_failures=cluster.engine.max_failures,
                controller_failure_limit=GROWING_PLACEMENT_ATTEMPTS if cluster.grows else PLACEMENT_ATTEMPTS,
            ),
        ),
    )
    trainer.fit()


class Training:
    """This is one run of Ray Train: `poll` it until it has `ended`, and `stop` it in any case."""

    def __init__(self, run: TrainRun, cluster: Cluster) -> None:
        """Start the training."""
        self.job, self.coordinator = run.job, new_coordinator()
        self.step, self.first_step, self.detail = 0, 0, ""
        self.started_at = time.monotonic()
        self.first_step_at: float | None = None
        self.last_post_at, self.last_posted = self.started_at, dict[str, Any]()
        # the name is new each time, because Ray would silently resume an old run of the same name
        self.folder = storage.join(run.job.stage.folder, f"ray-train-{uuid4().hex[:8]}")
        on_driver = run_trainer.options(scheduling_strategy=this_node())
        self.task = on_driver.remote(run, self.coordinator, self.folder, cluster)

    @property
    def ended(self) -> bool:
        """Return True if Ray Train has come back."""
        return bool(ray.wait([self.task], timeout=0)[0])

    def poll(self) -> dict[str, Any]:
        """Read what the workers posted. An error that a worker posted is raised, because the other workers would wait
        for it.
        """
        posted = self.coordinator.read()
        if "error" in posted:
            raise posted["error"]
        if posted != self.last_posted:
            self.last_post_at, self.last_posted = time.monotonic(), posted
        if "train" in posted:
            self.step, loss = posted["train"]
            if self.first_step_at is None:
                self.first_step, self.first_step_at = self.step, time.monotonic()
            validation = f", validation {posted['validation'][1]:.4f}" if "validation" in posted else ""
            self.detail = f"loss {loss:.4f}{validation}"
        return posted

    def hangs(self, timeout_s: float) -> bool:
        """Return True if the training made its first step and then posted nothing for `timeout_s` seconds."""
        return self.first_step_at is not None and not self.ended and time.monotonic() - self.last_post_at > timeout_s

    def result(self) -> dict[str, Any]:
        """Return the facts of a training that has ended; its weights are in the stage's folder.

        It raises RunFailed if the training failed.
        """
        posted = self.poll()
        try:
            ray.get(self.task)
        except ray.exceptions.RayError as error:
            raise mucs_error_in(error) or RunFailed(f"training failed: {last_line(error)}") from error
        facts = posted.get("result") or finished_facts(self.job.stage)
        self.step = facts["updates"]
        seconds = time.monotonic() - self.first_step_at if self.first_step_at is not None else 0.0
        rate = (self.step - self.first_step) * self.job.train.batch_size / seconds if seconds else 0.0
        return {**facts, "images_per_second": round(rate, 1), "seconds": round(time.monotonic() - self.started_at, 2)}

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End what is left of the training: its process, with that its workers, and Ray Train's own files.

        The process is waited for first: Ray Train gives its CPUs back when it ends by itself, but not surely when it is
        killed.
        """
        cancel_unfinished([self.task], timeout_s=timeout_s)
        remove_folder(self.folder)


def train_all(runs: Sequence[TrainRun], cluster: Cluster, *, bar: Bar) -> Iterator[tuple[int, dict[str, Any]]]:
    """Train all runs, as many at once as there is room for, and yield (number, facts) as each is done.

    If one fails, those that run beside it are finished, no other is started, and then its error is raised.
    """
    waiting, running, ended = list(range(len(runs))), dict[int, Training](), dict[int, Training]()
    failure: MucsError | None = None
    hangs = [0] * len(runs)
    try:
        while running or (waiting and failure is None):
            while (
                waiting
                and failure is None
                and has_room(runs[waiting[0]], [runs[number] for number in running], cluster)
            ):
                number = waiting.pop(0)
                running[number] = Training(runs[number], cluster)
            time.sleep(POLL_S)
            for number, training in list(running.items()):
                try:
                    training.poll()
                    facts = training.result() if training.ended else None
                    if training.hangs(cluster.engine.timeout):
                        hangs[number] += 1
                        running.pop(number).stop()
                        running[number] = restart_after_hang(runs[number], cluster, hangs[number], bar)
                except MucsError as error:
                    failure, facts = failure or error, None
                    if number in running:
                        running.pop(number).stop()
                if facts is not None:
                    ended[number] = running.pop(number)
                    training.stop()
                    yield number, facts
            show_progress(bar, [*ended.values(), *running.values()])
        if failure is not None:
            raise failure
    finally:
        for training in running.values():
            training.stop(timeout_s=0.0)


def restart_after_hang(run: TrainRun, cluster: Cluster, hangs: int, bar: Bar) -> Training:
    """Start a training that hung again from its last published state. It raises RunFailed after too many hangs."""
    cause = f"{run.job.stage.name} gave no sign of life for {cluster.engine.timeout:g} s"
    if hangs > cluster.engine.max_failures:
        raise RunFailed(f"{cause}, {hangs} times; run the command again")
    bar.print_event(f"{cause}; begun again from its last state", "failure", unit=run.job.stage.name, kind="hung")
    return Training(run, cluster)


def has_room(run: TrainRun, running: Sequence[TrainRun], cluster: Cluster) -> bool:
    """Return True if one more training can be placed beside those that are running."""
    num_taken = sum(other.num_workers for other in running)
    max_trainings = cluster.engine.trainings
    few_enough = max_trainings == 0 or len(running) < max_trainings
    return not running or (few_enough and num_taken + run.num_workers <= cluster.slots)


def show_progress(bar: Bar, trainings: Sequence[Training]) -> None:
    """Show the progress of all trainings in one bar."""
    bar.done_before = sum(training.first_step for training in trainings)
    bar.set(
        sum(training.step for training in trainings),
        "; ".join(training.detail for training in trainings if training.step < training.job.train.updates),
    )


def finished_facts(stage: Stage) -> dict[str, Any]:
    """Read the facts of a finished training from its published state, for the case that they were lost with a node."""
    _, facts = checkpoint.load(stage.url(stage.part("state", "safetensors")))
    return {"updates": facts["step"], "best_loss": facts["best_loss"], "best_step": facts["best_step"]}


def resources(cluster: Cluster) -> dict[str, float]:
    """Return the resources of one training worker."""
    return {"CPU": ACTOR_CPUS, **({"GPU": 1.0} if cluster.gpus else {})}


def remove_folder(url: str) -> None:
    """Remove Ray Train's own files, which this process had made and nobody needs afterwards.

    After an interrupt its controller may still be writing there; what stays then is harmless.
    """
    with suppress(OSError):
        storage.remove_folder(url)
