"""This module does many trainings in few runs of Ray Train, and shows their progress.

Starting Ray Train costs about 15 s of CPU, five processes and the import of torch. So a group of workers that has
finished a training is given the next one that needs as many workers, and ends when there is none.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import ray
import ray.exceptions

from mucs_ray import storage
from mucs_ray.engine.coordinator import POLL_S, cancel_unfinished, last_line, mucs_error_in, new_coordinator, this_node
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.ray_train import TrainRun, remove_folder, run_trainer
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import MucsError, RunFailed

STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Training:
    """This is one training and how far it is, as its workers report it."""

    run: TrainRun
    number: int
    """Its place in the list of all trainings."""
    started_at: float = field(default_factory=time.monotonic)
    first_step: int = 0
    """The update from which its workers go on."""
    first_step_at: float | None = None
    step: int = 0
    losses: str = ""
    """The newest losses, for the progress line."""

    def read(self, posted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take over what the workers have posted of this training, and return its facts once it is finished."""
        if train := posted.get(f"{self.number}/train"):
            self.step, loss = train
            if self.first_step_at is None:
                self.first_step, self.first_step_at = self.step, time.monotonic()
            validation = posted.get(f"{self.number}/validation")
            self.losses = f"loss {loss:.4f}" + (f", validation {validation[1]:.4f}" if validation else "")
        facts = posted.get(f"{self.number}/result")
        if facts is None:
            return None
        self.step = facts["updates"]
        seconds = time.monotonic() - self.first_step_at if self.first_step_at is not None else 0.0
        rate = (self.step - self.first_step) * self.run.job.train.batch_size / seconds if seconds else 0.0
        return {**facts, "images_per_second": round(rate, 1), "seconds": round(time.monotonic() - self.started_at, 2)}


class WorkerGroup:
    """This is one run of Ray Train: `assign` it a training, `poll` it until that ends, and `stop` it in any case."""

    def __init__(self, training: Training, cluster: Cluster) -> None:
        """Start Ray Train with as many workers as the training needs."""
        self.num_workers = training.run.num_workers
        self.num_finished, self.gave_up = 0, False
        self.jobs, self.reports = new_coordinator(), new_coordinator()
        self.last_post_at, self.last_posted = time.monotonic(), dict[str, Any]()
        # a name of its own each time: Ray would silently resume an old run of the same name, and the state is ours
        self.folder = storage.join(training.run.job.stage.folder, f"ray-train-{uuid4().hex[:8]}")
        self.assign(training)
        on_driver = run_trainer.options(scheduling_strategy=this_node())
        self.task = on_driver.remote(self.num_workers, self.jobs, self.reports, self.folder, cluster)

    def assign(self, training: Training | None) -> None:
        """Let the workers begin a training; with None they end."""
        self.training = training
        self.jobs.post_now("next", None if training is None else (training.number, training.run.job))

    @property
    def ended(self) -> bool:
        """Return True if Ray Train has come back."""
        return bool(ray.wait([self.task], timeout=0)[0])

    def poll(self) -> dict[str, Any] | None:
        """Return the facts of the current training if it is finished; its weights are in its stage's folder.

        It raises the error that a worker reported, because the other workers would wait for it, and RunFailed if Ray
        Train gave up or came back without a result.
        """
        ended = self.ended  # asked first: what was posted before the end is then read below
        posted = self.reports.read()
        if "error" in posted:
            raise posted["error"]
        if posted != self.last_posted:
            self.last_post_at, self.last_posted = time.monotonic(), posted
        if self.training is None:
            return None
        facts = self.training.read(posted)
        if facts is not None:
            self.num_finished += 1
        elif ended:
            self.gave_up = True
            raise self.failure()
        return facts

    def failure(self) -> MucsError:
        """Return why Ray Train came back without a result."""
        try:
            ray.get(self.task)
        except ray.exceptions.RayError as error:
            return mucs_error_in(error) or RunFailed(f"training failed: {last_line(error)}")
        return RunFailed("training failed: Ray Train came back without a result; run the command again")

    def hangs(self, timeout_s: float) -> bool:
        """Return True if its training has begun, or all are finished, and nothing is posted for `timeout_s` seconds."""
        begun = self.training is None or self.training.first_step_at is not None
        return begun and not self.ended and time.monotonic() - self.last_post_at > timeout_s

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End what is left of the run: its process, with that the workers, and Ray Train's own files.

        The process is waited for first: Ray Train gives its CPUs back when it ends by itself, but not surely when it is
        killed.
        """
        cancel_unfinished([self.task], timeout_s=timeout_s)
        remove_folder(self.folder)


def train_all(runs: Sequence[TrainRun], cluster: Cluster, *, bar: Bar) -> Iterator[tuple[int, dict[str, Any]]]:
    """Train all runs, as many at once as there is room for, and yield (number, facts) as each is done.

    If one fails, those that run beside it are finished, no other is started, and then its error is raised.
    """
    trainings = Trainings(runs, cluster, bar)
    try:
        while trainings.groups or (trainings.waiting and trainings.failure is None):
            trainings.start_groups()
            time.sleep(POLL_S)
            for group in list(trainings.groups):
                number = None if group.training is None else group.training.number
                facts = trainings.advance(group)
                if facts is not None and number is not None:
                    yield number, facts
            trainings.show()
        if trainings.failure is not None:
            raise trainings.failure
    finally:
        for group in trainings.groups:
            group.stop(timeout_s=0.0)


class Trainings:
    """This keeps which trainings wait, which group of workers does which one, and the first failure."""

    def __init__(self, runs: Sequence[TrainRun], cluster: Cluster, bar: Bar) -> None:
        """Let all trainings wait."""
        self.runs, self.cluster, self.bar = runs, cluster, bar
        self.waiting, self.groups = list(range(len(runs))), list[WorkerGroup]()
        self.begun: dict[int, Training] = {}
        self.hangs = [0] * len(runs)
        self.failure: MucsError | None = None

    def start_groups(self) -> None:
        """Start groups of workers for the trainings that wait, as far as there is room."""
        while self.waiting and self.failure is None and has_room(self.next_run.num_workers, self.groups, self.cluster):
            self.groups.append(WorkerGroup(self.begin(self.waiting.pop(0)), self.cluster))

    @property
    def next_run(self) -> TrainRun:
        """Return the run of the training that begins next."""
        return self.runs[self.waiting[0]]

    def begin(self, number: int) -> Training:
        """Record that a training begins now, for the first time or again."""
        self.begun[number] = Training(self.runs[number], number)
        return self.begun[number]

    def advance(self, group: WorkerGroup) -> dict[str, Any] | None:
        """Poll a group once, act on the result, and return the facts of its training if that is finished."""
        training, timeout_s = group.training, self.cluster.engine.timeout
        try:
            facts = group.poll()
            if facts is not None:
                fits = self.waiting and self.failure is None and self.next_run.num_workers == group.num_workers
                group.assign(self.begin(self.waiting.pop(0)) if fits else None)
                return facts
            if training is None and (group.ended or group.hangs(timeout_s)):
                self.remove(group)
            elif training is not None and group.hangs(timeout_s):
                self.count_hang(training)
                self.restart(group, training)
        except MucsError as error:
            if training is not None and group.gave_up and group.num_finished:
                # Ray Train counts failures of the whole group: earlier trainings may have used up what is allowed
                self.restart(group, training)
            else:
                self.failure = self.failure or error
                self.remove(group)
        return None

    def remove(self, group: WorkerGroup) -> None:
        """Stop a group for good."""
        self.groups.remove(group)
        group.stop()

    def restart(self, group: WorkerGroup, training: Training) -> None:
        """Go on with a training, from its last published state, in a new group of workers."""
        self.remove(group)
        self.groups.append(WorkerGroup(self.begin(training.number), self.cluster))

    def count_hang(self, training: Training) -> None:
        """Print that a training hangs. It raises RunFailed if it has done so too often."""
        name, engine = training.run.job.stage.name, self.cluster.engine
        self.hangs[training.number] += 1
        cause = f"{name} gave no sign of life for {engine.timeout:g} s"
        if self.hangs[training.number] > engine.max_failures:
            raise RunFailed(f"{cause}, {self.hangs[training.number]} times; run the command again")
        self.bar.print_event(f"{cause}; begun again from its last state", "failure", unit=name, kind="hung")

    def show(self) -> None:
        """Show the progress of all trainings in one bar."""
        begun = self.begun.values()
        self.bar.done_before = sum(training.first_step for training in begun)
        running = [training for training in begun if training.step < training.run.job.train.updates]
        self.bar.set(sum(training.step for training in begun), "; ".join(training.losses for training in running))


def has_room(num_workers: int, groups: Sequence[WorkerGroup], cluster: Cluster) -> bool:
    """Return True if one more group of `num_workers` workers can be placed beside those that are running."""
    num_taken = sum(group.num_workers for group in groups)
    max_groups = cluster.engine.trainings
    few_enough = max_groups == 0 or len(groups) < max_groups
    return not groups or (few_enough and num_taken + num_workers <= cluster.slots)
