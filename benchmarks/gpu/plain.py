"""Methods in a plain loop on one device, without Ray: their hooks in order, each computed once for all who share it.

Axes: b training images, i items.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch
from common import DEVICE
from torch import Tensor
from unlearn_together import Unlearnings

from mucs_ray.attribution.base import Attributor, ItemState, MethodContext
from mucs_ray.attribution.card import MethodCard, MethodStage, load_class
from mucs_ray.attribution.loss_change import select_measure
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.registry import METHODS
from mucs_ray.config.recipe import Recipe, for_method, with_values
from mucs_ray.data.local import LocalImages
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.order import batch_rows


class Attribution:
    """All methods of one trained model, on one training set, for the same items."""

    def __init__(self, recipe: Recipe, images: LocalImages, model: DiffusionModel, items: Sequence[Item]) -> None:
        """Put the images on the device, in parts of equal size where the set can be cut so."""
        self.recipe, self.images, self.model, self.items = recipe, images, model, items
        num = len(images)
        size = max(size for size in range(1, 513) if num % size == 0)
        size = size if size >= 128 else 512
        self.parts = [
            images.batch(np.arange(start, min(start + size, num))).to(DEVICE) for start in range(0, num, size)
        ]
        self.made: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def scores(self, name: str, settings: Mapping[str, Any]) -> np.ndarray:
        """Return the scores [b, i] of a method under these settings, before any correction of ranks."""
        card = METHODS[name]
        recipe = with_values(for_method(self.recipe, card), settings)
        if not card.stages:
            kind = load_class(card.implementation)
            idx = torch.cat([part.idx for part in self.parts]).cpu()
            images = Batch(idx=idx, z=torch.zeros(len(idx), 0), condition={})
            context = MethodContext(settings=recipe, device=DEVICE, num_images=len(idx), items=self.items)
            return kind(context).score(images).cpu().numpy()
        rows_of: dict[str, Sequence[Any]] = {}
        prepared_by: dict[str, dict[str, Tensor]] = {}
        reads_by: dict[str, list[str]] = {}
        states: list[ItemState] = []
        for stage in card.stages:
            own_reads = reads_by.setdefault(stage.owner, [])
            own_reads += stage.reads
            late = stage.hook in ("score", "fit_together")  # these depend on what every owner has made
            reads = [key for keys in (reads_by.values() if late else (own_reads,)) for key in keys]
            key = json.dumps([stage.owner or card.implementation, stage.hook, values_at(recipe, reads)], default=str)
            rows = rows_of.get(stage.owner, self.parts)
            prepared = prepared_by.get(stage.owner, next(reversed(prepared_by.values()), {}))
            if key not in self.made:
                self.made[key] = self.timed(name, stage, card, recipe, rows, prepared, states)
            result = self.made[key]
            match stage.hook:
                case "features":
                    rows_of[stage.owner] = result
                case "accumulate" | "fit" | "fit_together":
                    prepared_by[stage.owner] = result
                case "fit_item":
                    states = result
                    self.facts[name] = [dict(state.facts) for state in states]
                case "score":
                    return result
                case _:
                    raise NotImplementedError(stage.hook)
        raise AssertionError(f"no stage of {name} scores")

    def timed(self, name: str, stage: MethodStage, *rest: Any) -> Any:
        """Return what a stage makes, and note the seconds it took."""
        started = time.monotonic()
        with as_in_training(DEVICE) if stage.computes_as_in_training else nullcontext():
            made = self.run(stage, *rest)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[f"{name}/{stage.name}"] = round(time.monotonic() - started, 2)
        return made

    def run(
        self,
        stage: MethodStage,
        card: MethodCard,
        recipe: Recipe,
        rows: Sequence[Any],
        prepared: dict[str, Tensor],
        states: Sequence[ItemState],
    ) -> Any:
        """Return what the hook of a stage makes."""
        worker = self.worker(stage, card, recipe)
        tensors = [state.tensors for state in states]
        match stage.hook:
            case "features":
                return [{"idx": part.idx, **worker.features(part)} for part in rows]
            case "accumulate":
                sums: dict[str, Tensor] = {}
                for part in rows:
                    for key, value in worker.accumulate(part).items():
                        sums[key] = sums[key] + value.double() if key in sums else value.double()
                return sums
            case "fit":
                return worker.fit(prepared, iter(rows))
            case "fit_item" if (
                isinstance(worker, MUCS) and not worker.config.retention and not worker.config.trajectory
            ):
                return Unlearnings(worker, self.images, self.items, prepared).run()
            case "fit_item":
                return [worker.fit_item(item, prepared, lambda *_: None) for item in self.items]
            case "fit_together":
                return worker.fit_together(prepared, tensors)
            case "score":
                worker.load(prepared, tensors)
                return np.concatenate(list(score_parts(worker, rows, recipe)))
            case _:
                raise NotImplementedError(stage.hook)

    def worker(self, stage: MethodStage, card: MethodCard, recipe: Recipe) -> Attributor:
        """Set up the class that a stage belongs to, as the engine does in a worker."""
        return load_class(stage.owner or card.implementation)(
            MethodContext(
                settings=recipe,
                device=DEVICE,
                num_images=len(self.images),
                items=self.items,
                denoiser=self.model,
                batches=self.batches,
                captures=DEVICE.type == "cuda",
            )
        )

    def batches(self, name: str, size: int) -> Any:
        """Return batches(step): training images in the order of this name."""
        num, seed = len(self.images), self.recipe.seed
        return lambda step: self.images.batch(batch_rows(seed, name, step, num_images=num, batch_size=size)).to(DEVICE)


def score_parts(worker: Attributor, rows: Sequence[Any], recipe: Recipe) -> Iterator[np.ndarray]:
    """Yield the scores of each part."""
    for part in rows:
        columns = worker.columns(part)
        scores = columns["score"] if "score" in columns else select_measure(columns, recipe.rank.measure)
        yield scores.float().cpu().numpy()


def values_at(recipe: Recipe, keys: Sequence[str]) -> list[Any]:
    """Return the values of a recipe at dotted keys, as JSON can hold them."""
    return [plain(value_at(recipe, key)) for key in keys]


def value_at(recipe: Recipe, key: str) -> Any:
    """Return the value at one dotted key; a method's section may have a slash in its name."""
    if not key.startswith("method."):
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part)
        return value
    section, _, name = key.removeprefix("method.").partition(".")
    config = recipe.method.get(section)
    return getattr(config, name) if name and config is not None else config


def plain(value: Any) -> Any:
    """Return a section as a mapping."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
