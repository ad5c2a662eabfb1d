"""Pretraining and retraining through Ray Train, at any number of workers.

`run_training` is the whole work of one worker and knows nothing of Ray; tests call it in a plain loop. The state is
published at the end of each epoch, so a lost worker, a lost driver and Ctrl-C all resume in the same way.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mucs_ray import storage
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.engine.board import POLL_S, last_line, new_board, own_error, read
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.session import ACTOR_CPUS, Cluster
from mucs_ray.errors import InputError, MucsError, RunFailed
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.store import checkpoint
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import load_state, model_facts, save_average, save_state
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.step import Group, TrainState, name_torch_stream, training

POST_INTERVAL_S = 0.5
STARTS = 5
"""Attempts to place the workers before giving up; Ray's own default is for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Everything a worker needs; small and picklable."""

    dataset: Dataset
    stage: Stage
    model: DiTConfig
    train: TrainConfig
    seed: int
    removed: frozenset[int] = frozenset()
    """Training images to leave out (retraining)."""


def run_training(job: TrainJob, group: Group, device: torch.device, post: Callable[[str, Any], None]) -> TrainState:
    """One worker's share, from the published state if there is one. RunFailed if the validation loss is not finite."""
    facts = {**model_facts(job.model), "seed": job.seed}
    state = fresh_state(job, device)
    load_state(job.stage, state)
    if group.size > 1:
        group = wrap(state, group)
    images = LocalImages(job.dataset, "train", removed=job.removed)
    test = LocalImages(job.dataset, "test")
    posted = 0.0
    for update in training(state, images, test, job.train, seed=job.seed, group=group):
        if group.rank == 0 and time.monotonic() - posted > POST_INTERVAL_S:
            posted = time.monotonic()
            post("train", (update.step, update.loss.item()))
        if update.validation is None:
            continue
        if not torch.isfinite(torch.tensor(update.validation)):
            raise RunFailed(f"training diverged: validation loss {update.validation} after {update.step} updates")
        if group.rank == 0:
            save_state(job.stage, state, facts)
            post("validation", (update.step, update.validation))
    if group.rank == 0:
        save_average(job.stage, "last", state, {**facts, "images_seen": state.step * job.train.batch_size})
        post("result", {"updates": state.step, "best_loss": state.best_loss, "best_step": state.best_step})
    return state


def fresh_state(job: TrainJob, device: torch.device) -> TrainState:
    """Initial weights from the name "train/init": the same for pretraining and every retraining of a seed."""
    name_torch_stream(job.seed, "train/init")
    return TrainState.fresh(EDMDenoiser(DiT(job.model)).to(device), job.train)


def wrap(state: TrainState, group: Group) -> Group:
    """Average gradients over the workers."""
    wrapped = ray.train.torch.prepare_model(state.live)

    def mean(values: torch.Tensor) -> torch.Tensor:
        there = values.to(next(state.live.parameters()).device)
        torch.distributed.all_reduce(there)
        return there.cpu() / group.size

    return Group(rank=group.rank, size=group.size, wrapped=wrapped, mean=mean)


def train_worker(task: dict[str, Any]) -> None:
    """What Ray Train runs in each worker. Our own errors are told, not raised: a retry would only repeat them."""
    context = ray.train.get_context()
    board: ActorHandle = task["board"]
    group = Group(rank=context.get_world_rank(), size=context.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("medium")  # spec 5; on CPUs this would mean bf16
    try:
        run_training(task["job"], group, device, lambda key, value: board.post.remote(key, value))
    except MucsError as error:
        ray.get(board.post.remote("error", error))
    ray.train.report({})


def workers_for(train: TrainConfig, wanted: int, cluster: Cluster) -> int:
    """The asked number of workers, or as many as there are GPUs (CPUs: at most 2) that divide the batch."""
    if wanted:
        most = cluster.gpus or int(cluster.cpus / ACTOR_CPUS)
        if wanted > most:
            raise InputError(f"engine.train_workers is {wanted}, but there is room for {most} on this cluster")
        if train.batch_size % wanted:
            raise InputError(f"train.batch_size {train.batch_size} cannot be split over {wanted} workers evenly")
        return wanted
    most = cluster.gpus or min(2, cluster.cpus)
    return max(num for num in range(1, most + 1) if train.batch_size % num == 0)


def train(job: TrainJob, cluster: Cluster, *, num_workers: int, max_failures: int, bar: Bar) -> dict[str, Any]:
    """Train to the end through Ray Train and return its facts; the weights are in the stage's folder."""
    board = new_board()
    failure: list[BaseException] = []
    # a name of its own each time: Ray would silently resume an old run of the same name, and the state is ours
    folder = storage.join(job.stage.folder, f"ray-train-{uuid4().hex[:8]}")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=cluster.gpus > 0, resources_per_worker=resources(cluster)
        ),
        run_config=RunConfig(
            name="run",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=STARTS),
        ),
    )

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    started = False
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            notes = read(board)
            if "error" in notes:  # of one worker: the others would wait for it
                raise notes["error"]
            if "train" in notes:
                step, loss = notes["train"]
                if not started:
                    bar.start_at(step)
                    started = True
                validation = f", validation {notes['validation'][1]:.4f}" if "validation" in notes else ""
                bar.set(step, f"loss {loss:.4f}{validation}")
        notes = read(board)
    finally:
        remove_folder(folder)
    if "error" in notes:
        raise notes["error"]
    if failure:
        raise own_error(failure[0]) or RunFailed(f"training failed: {last_line(failure[0])}") from failure[0]
    result = notes.get("result") or finished_facts(job.stage)
    bar.set(result["updates"])
    return result


def finished_facts(stage: Stage) -> dict[str, Any]:
    """What the last worker told, off its published state, should the note of it be lost with a node."""
    _, facts = checkpoint.load(stage.url(stage.part("state", "safetensors")))
    return {"updates": facts["step"], "best_loss": facts["best_loss"], "best_step": facts["best_step"]}


def resources(cluster: Cluster) -> dict[str, float]:
    """Of one training worker."""
    return {"CPU": ACTOR_CPUS, **({"GPU": 1.0} if cluster.gpus else {})}


def remove_folder(url: str) -> None:
    """Ray Train's own bookkeeping, made by us in this call; nothing in it is needed afterwards.

    Its controller may still be writing there when we are interrupted; what then stays is harmless.
    """
    fs, path = storage.filesystem(url)
    with suppress(OSError):
        fs.rm(path, recursive=True)
