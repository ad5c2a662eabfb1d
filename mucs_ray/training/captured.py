"""The forward and backward pass of an update, captured once as a CUDA graph and replayed (diffusion/replay.py).

A small network's update is some thousand kernels of a few microseconds, which Python launches more slowly than a GPU
runs them. What is random in the network (dropout, dropped conditions) is drawn when the graph is replayed, from torch's
generator as it is then seeded.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray.diffusion.replay import Replay, warn_not_captured


class CapturedLoss:
    """The mean loss of a batch and its gradients, at fixed addresses."""

    def __init__(
        self, mean_loss: Callable[[Mapping[str, Tensor]], Float[Tensor, ""]], optimizer: torch.optim.Optimizer
    ) -> None:
        """Prepare for capture. `mean_loss` takes tensors by name, of the same shapes each time.

        The optimizer's gradients stay allocated.
        """
        self.mean_loss, self.optimizer = mean_loss, optimizer
        self.inputs: dict[str, Tensor] = {}
        self.replay: Replay | None = None

    def capture(self, inputs: Mapping[str, Tensor]) -> bool:
        """Capture at the first update, which uses up random numbers that must be drawn again.

        Returns False, with a warning, if the network does something that cannot be captured.
        """
        if self.replay is None:
            self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            try:
                self.replay = Replay(self._compute, next(iter(inputs.values())).device)
            except Exception as error:  # whatever the network, torch or CUDA say to it
                warn_not_captured(error)
        return self.replay is not None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the loss, which the next call overwrites; the gradients are where the optimizer looks for them."""
        assert self.replay is not None, "capture comes first"
        for name, fixed in self.inputs.items():
            fixed.copy_(inputs[name])
        return self.replay()["loss"].clone()

    def _compute(self) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.mean_loss(self.inputs)
        loss.backward()
        return {"loss": loss.detach()}
