"""As many F2s as fit have their changed tensors on the device; the others wait in main memory and take turns.

A turn copies its models into the same slots, so that whatever was captured with a slot's addresses stays right. F1 is
number 0 and needs no slot; it comes with the first turn only, so its losses are computed once.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

SHARE_OF_FREE_MEMORY = 0.5
"""The share of a GPU's free memory that the F2s take; the rest is for the forwards."""


class ModelSlots:
    """This maps numbers, from 1, to F2s; `slots[number]` may be used while the number's turn lasts."""

    def __init__(
        self,
        bank: Sequence[Mapping[str, Tensor]],
        device: torch.device,
        resident: int | None = None,
        num_banks: int = 1,
    ) -> None:
        """Keep `resident` of the bank's models on the device at once; None means as many as fit, beside other banks."""
        num_fitting = num_that_fit(bank, device, num_banks) if resident is None else resident
        self.num_slots = max(1, min(len(bank), num_fitting))
        self.all_fit = len(bank) <= self.num_slots
        if self.all_fit:
            self.bank = self.slots = [{name: tensor.to(device) for name, tensor in tensors.items()} for tensors in bank]
            return
        self.bank = [{name: in_main_memory(tensor, device) for name, tensor in tensors.items()} for tensors in bank]
        self.slots = [
            {name: torch.empty_like(tensor, device=device) for name, tensor in self.bank[0].items()}
            for _ in range(self.num_slots)
        ]

    def __len__(self) -> int:
        """Return the number of F2s."""
        return len(self.bank)

    def slot(self, number: int) -> int:
        """Return the slot of F2 `number` while its turn lasts; -1 for F1, which needs none."""
        return (number - 1) % self.num_slots if number else -1

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        """Return the tensors of F2 `number`, from 1, on the device, while its turn lasts.

        F1, number 0, changes none.
        """
        return self.slots[self.slot(number)] if number else {}

    def turns(self, numbers: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield (place in `numbers` where the turn begins, its numbers); all of a turn's models are on the device."""
        start = 0
        while start < len(numbers):
            used: set[int] = set()
            stop = start
            while stop < len(numbers) and self.slot(numbers[stop]) not in used:
                used.add(self.slot(numbers[stop]))
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
    """Return how many of these models a GPU holds in this bank's part of its memory.

    A CPU holds all of them, because they are in its memory already.
    """
    if device.type != "cuda" or not bank:
        return len(bank)
    one = sum(tensor.numel() * tensor.element_size() for tensor in bank[0].values())
    return int(SHARE_OF_FREE_MEMORY / num_banks * torch.cuda.mem_get_info(device)[0] / one)


def in_main_memory(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor in main memory; for a GPU in pinned pages, from which it can copy by itself."""
    return tensor.cpu().pin_memory() if device.type == "cuda" else tensor
