"""The user's pictures become items, as if they had been generated (spec/models.md 3)."""

from dataclasses import asdict, replace

import pyarrow as pa
import torch

from mucs_ray.data.batch import conditions
from mucs_ray.data.caption_embedding import embed
from mucs_ray.data.queries import Query, class_number, read_picture, read_tensor
from mucs_ray.data.table import Card, Dataset, read_unit
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import Condition, one_by_one
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.models.spec import ModelSpec
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.files import Output
from mucs_ray.spaces.codec import Asked, Codec
from mucs_ray.store import checkpoint
from mucs_ray.store.facts import GenerationFacts, QueriesFacts, QueryFacts
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import PlannedItem, save_item


def read(pipeline: Pipeline) -> Output:
    """Read each query, bring it into the space of the model, and publish it as an item."""
    stage, dataset = pipeline.stages["generate"], pipeline.dataset
    codec = adapter(pipeline.recipe.model).codec(torch.device("cpu"))
    nothing = null_condition(pipeline.recipe.model, codec)
    stage.begin([item_file(stage, number) for number in range(len(pipeline.queries))])
    files, facts, planned = {}, [], []
    for number, query in enumerate(pipeline.queries):
        if query.generated:
            z, condition, seen = as_generated(query, pipeline, codec, nothing)
        elif query.is_row:
            z, condition, seen = as_row(query, dataset, codec)
        else:
            z, condition, seen = as_file(query, pipeline, codec, nothing)
        item = Item(number=number, idx=query.idx, condition=condition, z=z)
        planned.append(PlannedItem(number=number, row=-1, idx=query.idx, role="target"))
        facts.append(seen)
        files[item_file(stage, number)] = save_item(stage, item, codec, {"role": "target"})
    return files, asdict(GenerationFacts(items=planned)) | asdict(QueriesFacts(queries=facts))


Read = tuple[torch.Tensor, Condition, QueryFacts]
"""z, the condition, and what was seen of the query."""


def as_generated(query: Query, pipeline: Pipeline, codec: Codec, nothing: Condition) -> Read:
    """Return an image that the run generated itself, unclamped. InputError if it was generated anew meanwhile."""
    try:
        tensors, _ = checkpoint.load(query.generated)
    except FileNotFoundError:
        raise InputError(f"--image {query.name}: {query.generated} is not there any more; name it again") from None
    z = tensors.pop("image")
    named = query.label is not None or query.prompt is not None
    facts = QueryFacts(condition=query.label or query.prompt or "", origin="generated image")
    return z, condition_of(query, pipeline.dataset.card, codec, nothing) if named else tensors, facts


def as_row(query: Query, dataset: Dataset, codec: Codec) -> Read:
    """Return an image of the data set, with its own condition. InputError if there is none of this number."""
    for split in ("train", "test"):
        for unit in dataset.units(split):
            numbers = read_unit(unit, ["idx"])["idx"].to_pylist()
            if query.idx in numbers:
                table = read_unit(unit).slice(numbers.index(query.idx), 1)
                batch: Batch = dataset.batch(table, codec)
                (condition,) = one_by_one(batch.condition, 1)
                facts = QueryFacts(condition=row_condition(table, dataset), origin=f"{split} image")
                return batch.z[0], condition, facts
    raise InputError(f"{query.name}: the data set has no image of this number")


def row_condition(table: pa.Table, dataset: Dataset) -> str:
    """Return the caption or the class of a row, for the report."""
    label, texts = table["label"][0].as_py(), table["text"][0].as_py() or [""]
    return dataset.card.classes[label] if label is not None and dataset.card.classes else texts[0]


def as_file(query: Query, pipeline: Pipeline, codec: Codec, nothing: Condition) -> Read:
    """Return a picture, or z itself, from a file. InputError if it cannot be read or does not fit the model."""
    dataset, card = pipeline.dataset, pipeline.dataset.card
    facts = QueryFacts(condition=query.label or query.prompt or "", origin="tensor")
    if query.is_tensor:
        z = torch.from_numpy(read_tensor(query))
        shape = dataset.batch(read_unit(dataset.units("train")[0]).slice(0, 1), codec).z.shape[1:]
        z = z[0] if z.shape[1:] == shape and len(z) == 1 else z  # one image with an axis for images
        if z.shape != shape:
            raise InputError(f"--image {query.name}: expected z of shape {tuple(shape)}; found {tuple(z.shape)}")
    else:
        picture = read_picture(query, card.size)
        pixels = torch.from_numpy(picture.pixels)
        z = codec.encode(pixels[None])[0]
        error = (codec.decode(z[None])[0] * 255 - pixels).square().mean().sqrt().item()
        original = list(picture.original) if picture.was_resized else None
        facts = replace(facts, origin="picture", codec_rms=round(error, 3), original=original)
    return z, condition_of(query, card, codec, nothing), facts


def condition_of(query: Query, card: Card, codec: Codec, nothing: Condition) -> Condition:
    """Return the condition that a query names; the model's null condition if it names none."""
    if query.label is not None:
        label = class_number(query.label, card)
        assert label is not None, "checked when the run was opened"
        one_hot = conditions(pa.table({"idx": [query.idx], "label": [label]}), card)
        assert one_hot is not None, "the data set has classes"
        return {"condition": torch.from_numpy(one_hot[0])}
    if query.prompt is not None and codec.reads_text:
        return one_by_one(codec.condition([Asked(text=query.prompt)]), 1)[0]
    if query.prompt is not None:
        return {"condition": torch.from_numpy(embed([query.prompt])[0])}
    return nothing


def null_condition(model: ModelSpec, codec: Codec) -> Condition:
    """Return the condition of a single image without any; it is empty for an unconditional model."""
    if not model.conditional:
        return {}
    if codec.reads_text:
        return one_by_one(codec.condition([Asked()]), 1)[0]
    return {name: tensor[0] for name, tensor in adapter(model).model(torch.device("cpu")).nothing(1).items()}
