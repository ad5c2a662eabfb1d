"""Retention that knows the condition: a share of each training batch has the condition of the item.

The descent beside the ascent then keeps what a class has in common: in (1 - share) E_Z + share E_{Z | c}, where c is
the condition of the item, curvature along it is larger, and unlearning moves along it less.
Axes: b images of a batch.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

from mucs_ray.attribution.base import MethodContext
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import joined, moved
from mucs_ray.diffusion.noise import generator
from mucs_ray.errors import InputError

MOST_READ = 100
"""The images that are looked at together."""
MOST_MATCHED = 1000
"""The images with the condition of an item that are kept in memory, the first of a shuffled order."""


def with_matched(
    batches: Callable[[int], Batch], matched: Batch, share: float, *, seed: int, name: str
) -> Callable[[int], Batch]:
    """Return batches in which the last rows, of this share, are drawn from `matched` by a named stream.

    They are all different, if there are enough.
    """

    def mixed(step: int) -> Batch:
        batch = batches(step)
        count = round(share * len(batch))
        stream = generator(seed, f"{name}/step={step}/matched")
        rows = stream.choice(len(matched), count, replace=count > len(matched))
        return together(batch[: len(batch) - count], matched[torch.from_numpy(rows)])

    return mixed


def images_like(item: Item, batches: Iterable[Batch]) -> Batch:
    """Return the images that have the item's condition, at most `MOST_MATCHED` of them.

    InputError if none has it.
    """
    found: Batch | None = None
    for batch in batches:
        alike = batch[has_condition(batch, item).nonzero()[:, 0].cpu()]  # idx stays on the CPU
        found = alike if found is None else together(found, alike)
        if len(found) >= MOST_MATCHED:
            break
    if found is None or not len(found):
        raise InputError(
            f"method.mucs.retention draws images with the condition of item {item.number}, and no training image has"
            " it; set it to 0 for data without conditions, or with a caption for each image"
        )
    return found[:MOST_MATCHED]


def every_image(context: MethodContext, name: str) -> Iterator[Batch]:
    """Yield all training images once, in the shuffled order of a name.

    Of a pass in batches the incomplete last one is dropped, so their size is one that divides the training set.
    """
    assert context.batches is not None
    num = context.num_images
    size = max(size for size in range(1, min(MOST_READ, num) + 1) if num % size == 0)
    batches = context.batches(name, size)
    yield from (batches(step) for step in range(num // size))


def has_condition(batch: Batch, item: Item) -> Bool[Tensor, " b"]:
    """Return which images have the item's condition, which is none if there are no conditions."""
    alike = torch.full((len(batch),), bool(item.condition), device=batch.z.device)
    for name, tensor in moved(item.condition, batch.z.device).items():
        alike &= (batch.condition[name] == tensor).flatten(1).all(dim=1)
    return alike


def together(first: Batch, second: Batch) -> Batch:
    """Return the images of two batches of one training set as one."""
    masks = [batch.mask for batch in (first, second) if batch.mask is not None]
    return Batch(
        idx=torch.cat([first.idx, second.idx]),
        z=torch.cat([first.z, second.z]),
        condition=joined([first.condition, second.condition]),
        mask=torch.cat(masks) if masks else None,
    )
