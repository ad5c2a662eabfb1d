"""The changed tensors of every F2, on the device as many as fit: the others wait in main memory and take turns.

A turn copies its models into the same slots, so that whatever was captured with a slot's addresses stays right. F1 is
number 0 and needs no slot; it comes with the first turn only, so its losses are computed once.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

SHARE_OF_FREE_MEMORY = 0.5
"""Of a GPU, for the F2s; the rest is for the forwards."""


class ModelSlots:
    """F2s by number, from 1; `slots[number]` is there while the number's turn lasts."""

    def __init__(
        self,
        bank: Sequence[Mapping[str, Tensor]],
        device: torch.device,
        resident: int | None = None,
        num_banks: int = 1,
    ) -> None:
        """`resident` of the bank's models are on the device at once; None = as many as fit, beside other banks."""
        most = num_that_fit(bank, device, num_banks) if resident is None else resident
        self.num_slots = max(1, min(len(bank), most))
        self.all_fit = len(bank) <= self.num_slots
        if self.all_fit:
            self.bank = self.slots = [{name: each.to(device) for name, each in tensors.items()} for tensors in bank]
            return
        self.bank = [{name: in_main_memory(each, device) for name, each in tensors.items()} for tensors in bank]
        self.slots = [
            {name: torch.empty_like(each, device=device) for name, each in self.bank[0].items()}
            for _ in range(self.num_slots)
        ]

    def __len__(self) -> int:
        """Number of F2s."""
        return len(self.bank)

    def slot(self, number: int) -> int:
        """Where F2 `number` is while its turn lasts; -1 for F1, which needs none."""
        return (number - 1) % self.num_slots if number else -1

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        """The tensors of F2 `number`, from 1, on the device; while its turn lasts. F1, number 0, changes nothing."""
        return self.slots[self.slot(number)] if number else {}

    def turns(self, numbers: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """(place in `numbers` where the turn begins, its numbers); all of a turn's models are on the device."""
        start = 0
        while start < len(numbers):
            taken: set[int] = set()
            stop = start
            while stop < len(numbers) and self.slot(numbers[stop]) not in taken:
                taken.add(self.slot(numbers[stop]))
                stop += 1
            self._fetch(numbers[start:stop])
            yield start, numbers[start:stop]
            start = stop

    def _fetch(self, numbers: Sequence[int]) -> None:
        """Copy these models to their slots, behind the forwards that still read what is there."""
        if self.all_fit:
            return
        for number in numbers:
            for name, fixed in self[number].items():
                fixed.copy_(self.bank[number - 1][name], non_blocking=True)


def num_that_fit(bank: Sequence[Mapping[str, Tensor]], device: torch.device, num_banks: int) -> int:
    """How many of these models a GPU holds in this bank's part of the share; a CPU holds all, for they are in its
    memory already.
    """
    if device.type != "cuda" or not bank:
        return len(bank)
    one = sum(each.numel() * each.element_size() for each in bank[0].values())
    return int(SHARE_OF_FREE_MEMORY / num_banks * torch.cuda.mem_get_info(device)[0] / one)


def in_main_memory(tensor: Tensor, device: torch.device) -> Tensor:
    """In main memory; for a GPU in pages from which it can copy by itself."""
    return tensor.cpu().pin_memory() if device.type == "cuda" else tensor
