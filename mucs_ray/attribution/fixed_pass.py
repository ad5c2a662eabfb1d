"""A fixed pass captures forwards of one shape as CUDA graphs: one for what models share, one for each slot.

Axes: p pairs of image and noise.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import mapped
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.diffusion.replay import Pool, Replay, Results


class FixedPass:
    """This holds images and noises of one shape at fixed addresses, from which the captured forwards read."""

    def __init__(
        self,
        shared: Callable[[Batch, NoiseSet], Results],
        model_losses: Callable[[Results, int], Float[Tensor, " p"]],
        slot: Callable[[int], int],
        batch: Batch,
        noises: NoiseSet,
        *,
        pool: Pool = None,
    ) -> None:
        """Copy the batch and the noises to fixed addresses.

        `shared` makes what all models need of a batch; `model_losses` makes the losses of one model from that; `slot`
        says where a model's tensors are: models that take turns in one slot share its captured forward.
        """
        condition = mapped(batch.condition, Tensor.clone)
        self.batch = Batch(idx=batch.idx, z=batch.z.clone(), condition=condition)
        self.noises = NoiseSet(level=noises.level.clone(), unit=noises.unit.clone())
        self.device, self.pool = batch.z.device, pool
        self.shared = Replay(lambda: shared(self.batch, self.noises), self.device, pool=pool)
        self.model_losses, self.slot = model_losses, slot
        self.in_slot: dict[int, Replay] = {}

    def inputs(self, batch: Batch, noises: NoiseSet) -> Results:
        """Return what all models need of this batch; the next call overwrites it."""
        self.batch.z.copy_(batch.z)
        for name, tensor in self.batch.condition.items():
            tensor.copy_(batch.condition[name])
        self.noises.level.copy_(noises.level)
        self.noises.unit.copy_(noises.unit)
        return self.shared()

    def losses(self, inputs: Results, number: int) -> Float[Tensor, " p"]:
        """Return the losses of a model, which is on the device; the next call for its slot overwrites them."""
        slot = self.slot(number)
        if slot not in self.in_slot:
            self.in_slot[slot] = Replay(
                lambda: {"losses": self.model_losses(inputs, number)}, self.device, pool=self.pool
            )
        return self.in_slot[slot]()["losses"]
