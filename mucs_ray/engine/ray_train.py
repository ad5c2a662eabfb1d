"""This module trains and retrains through Ray Train, with any number of workers.

`run_training` is the whole work of one worker and does not use Ray; tests call it in a plain loop. The state is
published at the end of each epoch, so a lost worker, a lost driver and Ctrl-C all resume in the same way.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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
from mucs_ray.engine.coordinator import Coordinator
from mucs_ray.engine.host import keep_freed_memory
from mucs_ray.engine.session import ACTOR_CPUS, Cluster
from mucs_ray.errors import InputError, MucsError, RunFailed
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import load_state, model_facts, save_average, save_state
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.step import TrainState, WorkerContext, training

POST_INTERVAL_S = 0.5
JOB_POLL_S = 0.2
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
    """Run in each worker of Ray Train: one training after the other, as the driver assigns them.

    Errors of this package are reported, not raised, because a retry would only repeat them.
    """
    context = ray.train.get_context()
    jobs: Coordinator = task["jobs"]
    reports: Coordinator = task["reports"]
    worker = WorkerContext(rank=context.get_world_rank(), size=context.get_world_size())
    device = ray.train.torch.get_device()
    try:
        with as_in_training(device), heartbeats(lambda: reports.post("alive", time.time())):
            while (assigned := next_job(jobs, reports, worker)) is not None:
                number, job = assigned
                run_training(job, worker, device, lambda key, value, n=number: reports.post(f"{n}/{key}", value))
    except MucsError as error:
        reports.post_now("error", error)
    ray.train.report({})


def next_job(jobs: Coordinator, reports: Coordinator, worker: WorkerContext) -> tuple[int, TrainJob] | None:
    """Return the number and the job of the training to do now, the same for every worker; None when all are done.

    A worker that was started again finds the training which was interrupted, or waits for the next one.
    """
    if worker.rank == 0:
        while (assigned := jobs.read()["next"]) is not None and f"{assigned[0]}/result" in reports.read():
            time.sleep(JOB_POLL_S)
    if worker.size > 1:
        torch.distributed.barrier()  # from here until the first worker has finished it, the driver assigns no other
    return jobs.read()["next"]


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
def run_trainer(num_workers: int, jobs: Coordinator, reports: Coordinator, folder: str, cluster: Cluster) -> None:
    """Run Ray Train in a process of its own, because in a thread of the driver it could not be ended before Ray is."""
    fs, path = storage.filesystem(folder)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"jobs": jobs, "reports": reports},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=cluster.gpus > 0, resources_per_worker=resources(cluster)
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


def resources(cluster: Cluster) -> dict[str, float]:
    """Return the resources of one training worker."""
    return {"CPU": ACTOR_CPUS, **({"GPU": 1.0} if cluster.gpus else {})}


def remove_folder(url: str) -> None:
    """Remove Ray Train's own files, which this process had made and nobody needs afterwards.

    After an interrupt its controller may still be writing there; what stays then is harmless.
    """
    with suppress(OSError):
        storage.remove_folder(url)
