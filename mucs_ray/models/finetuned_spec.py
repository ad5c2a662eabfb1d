"""[finetune] of a recipe, and the settings of the model that it makes of that of [model]; without torch.

A recipe does not name this kind of model itself.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from mucs_ray.errors import InputError
from mucs_ray.models.spec import ModelSpec

Targets = Literal["attention", "mlp", "blocks"]
"""The matrices that have branches, as `DiffusionModel.names` selects them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """How a training starts from the weights of a base; [train] says how long and how fast it is (docs/fine-tunes.md).

    Every retraining starts from the same base.
    """

    kind: Literal["lora", "full", "none"] = "none"
    """lora: only branches of low rank beside some matrices of the base are trained; full: all of its weights are; none:
    nothing is trained from a base, which at most is compared with `weights`."""
    base: str | None = None
    """The file of the base's weights, which is read and never changed."""
    rank: Annotated[int, Gt(0)] = 16
    """The rank of a branch; a LoRA of this rank has so many columns in A and in B."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """A branch is scaled by alpha / rank."""
    targets: Targets = "attention"
    noises: Annotated[int, Ge(1)] = 100
    """The noises at training levels on which the base is compared with the model, for the base share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunedSpec(ModelSpec):
    """A model whose training starts from a base; with a rank, only its low-rank branches are trained."""

    kind: ClassVar[str] = "finetuned"
    trains: ClassVar[bool] = True
    bound: ClassVar[Literal["drawn", "linear"]] = "linear"  # untrained weights are not what this training starts from

    model: ModelSpec = field(default_factory=ModelSpec)
    """The model without what the fine-tune adds."""
    base: str = ""
    """The file of the base's weights."""
    rank: int = 0
    """The rank of the branches; 0 = all weights are trained."""
    alpha: float = 0.0
    targets: Targets = "attention"

    @property
    def own(self) -> ModelSpec:
        """The model without what the fine-tune adds."""
        return self.model

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; those of a model all of whose weights were trained do not differ from the base's."""
        if not self.rank:
            return self.model.to_dict()
        branches = {"base": self.base, "rank": self.rank, "alpha": self.alpha, "targets": self.targets}
        return {"kind": self.kind, "model": self.model.to_dict(), **branches}

    def check(self) -> None:
        """Raise InputError if the values make no sense together."""
        self.model.check()

    def check_fits(self, *, size: int, condition_dim: int, data: str) -> None:
        """Raise InputError if the model cannot read the images and the condition of the data set at this URL."""
        self.model.check_fits(size=size, condition_dim=condition_dim, data=data)

    @property
    def conditional(self) -> bool:
        """Whether the model reads a condition."""
        return self.model.conditional

    def describe(self) -> str:
        """Return one line for the report."""
        how = f"a LoRA of rank {self.rank} on its {self.targets} matrices" if self.rank else "all of its weights"
        return f"{self.model.describe()}, trained from {self.base.rsplit('/', 1)[-1]}: {how}"


def finetuned(model: ModelSpec, config: FinetuneConfig, *, weights: str | None) -> ModelSpec:
    """Return the model that [finetune] makes of that of [model]. InputError, in one line, if it cannot be made."""
    if config.base is None:
        if config.kind != "none":
            raise InputError(
                f"finetune.kind is {config.kind}, and there is nothing to start from; set finetune.base to the file of"
                " the base's weights"
            )
        return model
    if config.kind == "none":
        if weights is None:
            raise InputError(
                "finetune.base is given and finetune.kind is none, so nothing is trained from it; set finetune.kind to"
                " lora or full, or give the fine-tuned weights with --weights"
            )
        return model
    if weights is not None and config.kind == "lora":
        raise InputError(
            "weights are given and finetune.kind is lora; branches that were trained elsewhere cannot be read yet:"
            " leave --weights out, or merge them into the base and set finetune.kind to full or none"
        )
    if not model.trains:
        raise InputError(f"finetune.kind is {config.kind}, and model.kind {model.kind} cannot be trained here")
    spec = FinetunedSpec(model=model, base=config.base)
    if config.kind == "full":
        return spec
    return replace(spec, rank=config.rank, alpha=config.alpha, targets=config.targets)
