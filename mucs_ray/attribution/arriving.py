"""The rows of an arriving batch reach the device while the first of them are already computed with.

The first few rows are decoded at once, the others by a thread, piece by piece, into pinned memory, from which each
piece is copied on a stream of its own. Whoever takes rows waits for the pieces that hold them and for no others: Python
until the copy has been requested, the device until it is made. An error in decoding is raised to whoever takes those
rows. On a CPU rows are put where they are read, and only the thread remains.

Axes: b images, *shape of z.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition

ROWS_AT_ONCE = 32
"""The number of rows in a piece. Decoding the first piece takes about a millisecond, and the device waits for nothing
else.
"""
Z, MASK, CONDITION = "z", "mask", "condition."
"""The names of the tensors of a batch; those of its condition begin with CONDITION."""


class Memory:
    """Memory has room for all rows where a CPU reads them."""

    def __init__(self, like: Mapping[str, Tensor], num_rows: int) -> None:
        """Reserve room for `num_rows` rows with the shapes and types of the rows `like`."""
        self.tensors = {name: torch.empty(num_rows, *rows.shape[1:], dtype=rows.dtype) for name, rows in like.items()}

    def send(self, rows: slice, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - whatever `wait` takes
        """Put rows where they are read, and return what `wait` takes to wait for them."""
        for name, tensor in tensors.items():
            self.tensors[name][rows] = tensor

    def wait(self, sent: Any) -> None:  # noqa: ANN401
        """Let work that is queued on the device from now on run after the rows have arrived; Python does not wait."""


class PinnedMemory(Memory):
    """This memory has room for all rows in pinned memory and on a GPU; each row is written once."""

    def __init__(self, like: Mapping[str, Tensor], num_rows: int, device: torch.device) -> None:
        """Reserve both places; neither is given to anybody else before the copies between them are made."""
        shapes = {name: ((num_rows, *rows.shape[1:]), rows.dtype) for name, rows in like.items()}
        self.pinned = {name: torch.empty(shape, dtype=kind, pin_memory=True) for name, (shape, kind) in shapes.items()}
        self.tensors = {name: torch.empty(shape, dtype=kind, device=device) for name, (shape, kind) in shapes.items()}
        self.device, self.stream = device, copy_stream(device)
        # queued forwards may still read the memory as it was used before
        self.stream.wait_stream(torch.cuda.current_stream(device))
        for tensor in self.tensors.values():
            tensor.record_stream(self.stream)  # a batch that is given up may be freed before its copies are made

    def send(self, rows: slice, tensors: Mapping[str, Tensor]) -> torch.cuda.Event:
        """Queue the copies behind those of earlier rows."""
        for name, tensor in tensors.items():
            self.pinned[name][rows] = tensor
        with torch.cuda.stream(self.stream):
            for name, pinned in self.pinned.items():
                self.tensors[name][rows].copy_(pinned[rows], non_blocking=True)
        sent = torch.cuda.Event()
        sent.record(self.stream)
        return sent

    def wait(self, sent: torch.cuda.Event) -> None:
        """Let the stream that computes wait."""
        torch.cuda.current_stream(self.device).wait_event(sent)


class Arrivals:
    """This knows which rows of a batch have arrived, and for how long their users have waited."""

    def __init__(
        self, num_rows: int, decoded: Callable[[slice], Batch], memory: Callable[..., Memory], at: int
    ) -> None:
        """Decode the first piece now and the others in a thread.

        `decoded(rows)` is called for `at` rows at a time, in order; `memory(like, num_rows)` makes the place that holds
        them.
        """
        first = decoded(slice(0, min(at, num_rows)))
        self.num_rows, self.at, self.decoded, self.seconds_waited = num_rows, at, decoded, 0.0
        self.idx = torch.empty(num_rows, dtype=torch.int64)
        self.memory = memory(tensors_of(first), num_rows)
        self.pieces = [Future[Any]()]
        self.pieces[0].set_result(self._send(slice(0, len(first)), first))
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arriving")
        starts = range(at, num_rows, at)
        self.pieces += [thread.submit(self._bring, slice(start, min(start + at, num_rows))) for start in starts]
        thread.shutdown(wait=False)  # it ends after the last piece

    def wait_for(self, start: int, stop: int) -> Batch:
        """Wait for these rows and return the whole batch, of which only they may be read.

        An error that kept one of them from being decoded is raised.
        """
        began = time.monotonic()
        sent = [piece.result() for piece in self.pieces[start // self.at : -(-stop // self.at)]]
        self.seconds_waited += time.monotonic() - began
        for piece in sent:
            self.memory.wait(piece)
        tensors = self.memory.tensors
        begin = len(CONDITION)
        condition = {name[begin:]: tensor for name, tensor in tensors.items() if name.startswith(CONDITION)}
        return Batch(idx=self.idx, z=tensors[Z], condition=condition, mask=tensors.get(MASK))

    def whole(self) -> Batch:
        """Wait for all rows and return the batch."""
        return self.wait_for(0, self.num_rows)

    def _bring(self, rows: slice) -> Any:  # noqa: ANN401 - whatever `Memory.wait` takes
        return self._send(rows, self.decoded(rows))

    def _send(self, rows: slice, piece: Batch) -> Any:  # noqa: ANN401
        self.idx[rows] = piece.idx
        return self.memory.send(rows, tensors_of(piece))


class ArrivingBatch(Batch):
    """This batch is used as any other. A cut waits for its own rows, the tensors as a whole wait for all of them."""

    __slots__ = ("arrivals",)
    arrivals: Arrivals

    def __init__(self, arrivals: Arrivals) -> None:
        """Set the one field; the fields of a batch are properties here."""
        object.__setattr__(self, "arrivals", arrivals)  # a batch is frozen

    def __len__(self) -> int:
        """Return the number of images, those still to come included."""
        return self.arrivals.num_rows

    def __getitem__(self, rows: slice | Int64[Tensor, " r"]) -> Batch:
        """Return a cut, which waits for nothing but its own rows, or some of the images."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            return self.arrivals.wait_for(start, stop)[rows]
        return self.arrivals.whole()[rows]

    @property
    def idx(self) -> Int64[Tensor, " b"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the numbers of all images."""
        return self.arrivals.whole().idx

    @property
    def z(self) -> Float[Tensor, "b *shape"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the tensors of all images."""
        return self.arrivals.whole().z

    @property
    def condition(self) -> Condition:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the conditions of all images."""
        return self.arrivals.whole().condition

    @property
    def mask(self) -> Float[Tensor, "b *shape"] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the masks of all images, or None."""
        return self.arrivals.whole().mask


def arriving(
    num_rows: int, decoded: Callable[[slice], Batch], device: torch.device, *, rows_at_once: int = ROWS_AT_ONCE
) -> ArrivingBatch:
    """Return the rows that `decoded` makes on the CPU as a batch that arrives on the device.

    An error in decoding the first rows is raised here.
    """

    def memory(like: Mapping[str, Tensor], num: int) -> Memory:
        return PinnedMemory(like, num, device) if device.type == "cuda" else Memory(like, num)

    return ArrivingBatch(Arrivals(num_rows, decoded, memory, rows_at_once))


def seconds_waited(rows: object) -> float:
    """Return how long the users of these rows have waited for them to be decoded; 0 for rows that were complete."""
    return rows.arrivals.seconds_waited if isinstance(rows, ArrivingBatch) else 0.0


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """Return the tensors of a batch that go to the device, by name."""
    mask = {} if batch.mask is None else {MASK: batch.mask}
    return {Z: batch.z, **mask, **{f"{CONDITION}{name}": tensor for name, tensor in batch.condition.items()}}


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for copies, which all batches of a process share."""
    return torch.cuda.Stream(device)
