"""Images arrive at a device with the same bits, ahead of the forwards and in time, and errors reach those who take
them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mucs_ray.attribution import arriving as module
from mucs_ray.attribution.arriving import Arrivals, ArrivingBatch, Memory, PinnedMemory, arriving, seconds_waited
from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.model_bank import ModelBank
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.diffusion.schedule import scoring_sigmas
from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiTConfig, unlearned_names
from tiny import lively, tiny_dataset

CPU = torch.device("cpu")
MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=1, num_heads=2, registers=1, condition_channels=16, condition_dim=3,
    kernel_size=3, dropout=0.0,
)  # fmt: skip
CONFIG = ScoreConfig(noises=3)
NOISES = NoiseSet.draw(1, "noise", scoring_sigmas(3, 0.7), (3, 8, 8))
IMAGES = Batch(
    idx=torch.arange(100, 109),
    z=normal(generator(1, "images"), 9, 3, 8, 8).tanh(),
    condition={"condition": torch.eye(3).repeat(3, 1)},
)
DENOISER = lively(MODEL)
BANK = [
    {name: 1.1 * DENOISER.network.get_parameter(name).detach() for name in unlearned_names(DENOISER.network)}
    for _ in range(2)
]
PATIENCE_S = 20.0


def same(one: Batch, other: Batch) -> bool:
    """Assert that two batches are equal bit for bit."""
    conditions = one.condition.keys() == other.condition.keys()
    pairs = [(one.idx, other.idx), (one.z, other.z)]
    pairs += [(one.condition[name], other.condition[name]) for name in one.condition if conditions]
    return conditions and all(torch.equal(*pair) for pair in pairs)


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("arriving")]


def ended() -> bool:
    """Return True if the threads end by themselves."""
    for each in threads():
        each.join(PATIENCE_S)
    return not threads()


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 4, 9, 32])
@pytest.mark.parametrize("rows", [slice(0, 2), slice(3, 9), slice(8, 50), slice(4, 4), slice(None), slice(1, 9, 3)])
def test_a_cut_is_that_of_the_whole_batch(at_once: int, rows: slice):
    batch = arriving(9, IMAGES.__getitem__, CPU, rows_at_once=at_once)
    assert len(batch) == 9
    assert same(batch[rows], IMAGES[rows])
    assert same(batch[torch.tensor([8, 0, 3])], IMAGES[torch.tensor([8, 0, 3])])
    assert same(batch, IMAGES)
    assert ended()


def test_a_mask_arrives_with_its_rows():
    masked = replace(IMAGES, mask=(IMAGES.z > 0).float())
    batch = arriving(9, masked.__getitem__, CPU, rows_at_once=2)
    assert batch.mask is not None and batch[3:8].mask is not None
    assert torch.equal(batch.mask, masked.mask) and torch.equal(batch[3:8].mask, masked.mask[3:8])


def test_rows_are_decoded_once_and_in_order():
    decoded_rows = list[slice]()

    def decoded(rows: slice) -> Batch:
        decoded_rows.append(rows)
        return IMAGES[rows]

    batch = arriving(9, decoded, CPU, rows_at_once=4)
    assert same(batch, IMAGES) and same(batch[2:5], IMAGES[2:5])
    assert decoded_rows == [slice(0, 4), slice(4, 8), slice(8, 9)]


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_losses_are_those_of_the_whole_batch_bit_for_bit(images: int, captures: bool):
    config = replace(CONFIG, images_per_forward=images)
    models = ModelBank(DENOISER, BANK, config, captures=captures, resident=1)
    whole = ModelBank(DENOISER, BANK, config).losses(IMAGES, NOISES)
    for _ in range(2):
        batch = arriving(9, IMAGES.__getitem__, CPU, rows_at_once=2)
        assert torch.equal(models.losses(batch, NOISES), whole)


def of_table(dataset: Dataset, table: pa.Table) -> ArrivingBatch:
    """Return the batch as the engine makes it."""
    return arriving(len(table), lambda rows: dataset.batch(table[rows]), CPU, rows_at_once=4)


def test_the_rows_of_a_unit_are_those_that_the_data_set_decodes(tmp_path: Path):
    dataset = tiny_dataset(tmp_path)
    for unit in dataset.units("train"):
        table = read_unit(unit)
        assert len(table) > 4
        assert same(of_table(dataset, table), dataset.batch(table))


# --- ahead of the forwards --------------------------------------------------------------------------------------------


@contextmanager
def first_forward(then: Callable[[], None]) -> Iterator[None]:
    """Do something in the middle of the first forward."""
    calls = list[int]()

    def hook(*_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            then()

    handle = DENOISER.network.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_forwards_begin_before_other_rows_are_decoded_and_those_are_sent_meanwhile():
    """If one waited for the other in the wrong order, it would wait until its timeout and fail."""
    begun, all_sent, sent = threading.Event(), threading.Event(), list[slice]()

    def decoded(rows: slice) -> Batch:
        if rows.start > 0:
            assert begun.wait(PATIENCE_S), "no forward was made before all rows were there"
        return IMAGES[rows]

    class Telling(Memory):
        def send(self, rows: slice, tensors: Any) -> None:
            super().send(rows, tensors)
            sent.append(rows)
            if rows.stop == 9:
                all_sent.set()

    def in_the_first_forward() -> None:
        assert sent == [slice(0, 3)]
        begun.set()
        assert all_sent.wait(PATIENCE_S), "no row was sent during a forward"

    batch = ArrivingBatch(Arrivals(9, decoded, Telling, 3))
    with first_forward(in_the_first_forward):
        losses = ModelBank(DENOISER, BANK, CONFIG).losses(batch, NOISES)
    assert torch.equal(losses, ModelBank(DENOISER, BANK, CONFIG).losses(IMAGES, NOISES))
    assert seconds_waited(batch) < 1.0  # all of it came during the first forward
    assert ended()


def test_the_time_that_was_waited_for_rows_is_known():
    def decoded(rows: slice) -> Batch:
        time.sleep(0.05 if rows.start else 0.0)
        return IMAGES[rows]

    batch = arriving(9, decoded, CPU, rows_at_once=3)
    assert seconds_waited(batch[:3]) == seconds_waited({}) == 0.0
    assert seconds_waited(batch) < 0.02
    assert same(batch, IMAGES)
    assert 0.02 < seconds_waited(batch) < 1.0


READS = {"item", "tolist", "numpy", "cpu", "equal", "nonzero", "__bool__", "__int__", "__float__"}
"""What Python can only answer once the device has: it would wait, and then the device for Python."""


class Calls(TorchFunctionMode):
    """This records what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def test_no_loss_is_read_before_all_of_a_batch_are_computed():
    batch = arriving(9, IMAGES.__getitem__, CPU, rows_at_once=2)
    models = ModelBank(DENOISER, BANK, CONFIG)
    with Calls() as calls:
        losses = models.losses(batch, NOISES)
        assert {"copy_", "linear"} <= calls.names and not calls.names & READS
        assert losses[0, 0, 0].item() > 0
    assert "item" in calls.names


# --- a device that does everything as late as it may ------------------------------------------------------------------


class LateStream:
    """This stream makes its copies only when somebody waits for them."""

    def __init__(self, device: object, log: list[str]) -> None:
        self.queue, self.made, self.log = list[Callable[[], object]](), 0, log

    def wait_stream(self, other: object) -> None:
        self.log.append("copies wait for forwards that are queued")

    def wait_event(self, event: "LateEvent") -> None:
        event.happen()


class LateEvent:
    def record(self, stream: LateStream) -> None:
        self.stream, self.place = stream, len(stream.queue)

    def happen(self) -> None:
        stream = self.stream
        while stream.made < self.place:
            stream.queue[stream.made]()
            stream.made += 1
            stream.log.append("copy")


class Deferring(TorchFunctionMode):
    """This queues what is asked of a stream."""

    def __init__(self, stream: LateStream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_ and (kwargs or {}).get("non_blocking"):
            self.stream.queue.append(lambda: func(*args))
            return args[0]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return what is asked of a GPU that does not exist; new memory holds NaN, as if another batch had left it."""
    calls, empty = list[str](), torch.empty

    def new(*shape: Any, pin_memory: bool = False, **how: Any) -> Tensor:
        tensor = empty(*shape, **how)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", new)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: calls.append("kept until its copies are made"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: LateStream(device, calls))
    monkeypatch.setattr(torch.cuda, "Event", LateEvent)
    monkeypatch.setattr(torch.cuda, "stream", Deferring)
    now = LateStream(CPU, calls)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now)
    module.copy_stream.cache_clear()
    yield calls
    module.copy_stream.cache_clear()


def to_late_device(num: int, decoded: Callable[[slice], Batch], at: int) -> ArrivingBatch:
    return ArrivingBatch(Arrivals(num, decoded, lambda like, count: PinnedMemory(like, count, CPU), at))


@pytest.mark.parametrize("images", [1, 2, 4])
def test_rows_are_there_when_forwards_read_them(images: int, log: list[str]):
    """Several batches go through one stream; a forward that did not wait for its rows would read NaN."""
    models = ModelBank(DENOISER, BANK, replace(CONFIG, images_per_forward=images))
    for order in (slice(None), torch.arange(9).flip(0)):
        rows = IMAGES[order]
        batch = to_late_device(9, rows.__getitem__, 2)
        assert ended()
        assert batch.arrivals.memory.tensors["z"].isnan().all()  # not one copy has been made yet
        assert torch.equal(models.losses(batch, NOISES), models.losses(rows, NOISES))


def test_a_cut_waits_for_its_own_copies_only(log: list[str]):
    batch = to_late_device(9, IMAGES.__getitem__, 3)
    assert ended()
    assert torch.equal(batch[:2].z, IMAGES.z[:2])
    assert log.count("copy") == 2  # of the images and of their conditions
    assert batch.arrivals.memory.tensors["z"][3:].isnan().all()
    assert same(batch, IMAGES)
    assert log.count("copy") == 6


def test_memory_is_not_written_before_its_last_reader_nor_given_away_before_its_copies(log: list[str]):
    for _ in range(2):
        batch = to_late_device(9, IMAGES.__getitem__, 9)
        assert same(batch, IMAGES)
    one = ["copies wait for forwards that are queued", *["kept until its copies are made"] * 2, *["copy"] * 2]
    assert log == 2 * one


# --- errors -----------------------------------------------------------------------------------------------------------


def failing(at: int) -> Callable[[slice], Batch]:
    def decoded(rows: slice) -> Batch:
        if rows.start == at:
            raise InputError(f"rows from {at} cannot be decoded")
        return IMAGES[rows]

    return decoded


def test_an_error_is_raised_to_whoever_takes_those_rows_each_time():
    bad, good = arriving(9, failing(6), CPU, rows_at_once=3), arriving(9, IMAGES.__getitem__, CPU, rows_at_once=3)
    assert same(bad[:6], IMAGES[:6])
    takes: Sequence[Callable[[], object]] = (lambda: bad[5:7], lambda: bad[torch.tensor([0])], lambda: bad.z)
    for take in takes:
        with pytest.raises(InputError, match="rows from 6 cannot be decoded"):
            take()
    with pytest.raises(InputError, match="rows from 6"):
        ModelBank(DENOISER, BANK, CONFIG).losses(bad, NOISES)
    assert same(good, IMAGES)  # no other batch is touched
    assert ended()


def test_an_error_in_the_first_rows_is_raised_at_once():
    with pytest.raises(InputError, match="rows from 0"):
        arriving(9, failing(0), CPU, rows_at_once=3)
    assert ended()


def test_an_image_that_is_cut_short_fails_its_own_unit(tmp_path: Path):
    dataset = tiny_dataset(tmp_path)
    table, other = (read_unit(unit) for unit in list(dataset.units("train"))[:2])
    images = table["image"].to_pylist()
    idx = table["idx"][5].as_py()
    images[5] = images[5][:-1]
    table = table.set_column(table.column_names.index("image"), "image", pa.array(images))
    batch, after = of_table(dataset, table), of_table(dataset, other)
    with pytest.raises(InputError, match=f"image idx={idx} holds"):
        _ = batch.z
    assert same(after, dataset.batch(other))
