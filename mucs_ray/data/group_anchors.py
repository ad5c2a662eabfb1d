"""Anchors out of a prepared data set: conditions of other groups, or images of other groups with the same content.

Axes: b images, g groups.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from mucs_ray.attribution.forgetting.anchors import Prompt, Template, alike, any_other, mean_direction
from mucs_ray.attribution.forgetting.config import GroupsConfig, Unlearner
from mucs_ray.attribution.forgetting.losses import Anchors, AnchorsOf
from mucs_ray.data import caption_embedding
from mucs_ray.data.group_images import GroupImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.condition import Condition
from mucs_ray.errors import InputError

Embed = Callable[[Sequence[str]], Float32[np.ndarray, "n d"]]
SAME_DIRECTION = 0.99
"""The least cosine of two embeddings of one caption by the same encoder, on any device and in any precision."""
SHOWN = 3


def anchors_of(
    unlearner: Unlearner,
    cut: GroupImages,
    dataset: Dataset,
    names: Sequence[str],
    number: int,
    config: GroupsConfig,
    *,
    nothing: Callable[[int], Condition],
    embed: Embed | None = None,
) -> AnchorsOf:
    """Return the function that draws the anchors of the images of group `number`, whose images `cut` tells apart.

    `names` are those of all groups, `nothing` returns the model's null condition, and `embed` embeds captions; the
    default is that of `data prepare`.
    InputError if captions do not have the form of groups.template, or an image has no like in other groups.
    """
    embed = embed or caption_embedding.embed
    if unlearner == "matched":
        return matched(cut, dataset, names[number], config.content)
    if dataset.card.condition == "label":
        if unlearner == "style-removed":
            return lambda idx, stream: Anchors(condition=nothing(len(idx)))
        return other_classes(dataset, names, chances(unlearner, names, number, config, embed))
    captions, template = captions_of(dataset, cut.idx[cut.rows["forget"]].tolist()), Template(config.template)
    check_encoder(dataset, captions, embed)
    prompts = parts_of(captions, template)
    if unlearner == "style-removed":
        return without_groups(captions, template, embed)
    return OtherPrompts(prompts, unlearner, names, number, config, embed)


def words_of(names: Sequence[str], config: GroupsConfig) -> list[tuple[str, ...]]:
    """Return the words that describe each group, or its name."""
    return [config.descriptors.get(name, (name,)) for name in names]


def prototypes_of(names: Sequence[str], config: GroupsConfig, embed: Embed) -> Float[np.ndarray, "g d"]:
    """Return the direction of each group's words."""
    return np.stack([mean_direction(embed(words)) for words in words_of(names, config)])


def chances(
    unlearner: Unlearner, names: Sequence[str], number: int, config: GroupsConfig, embed: Embed
) -> Float[np.ndarray, " g"]:
    """Return the probability of each other group, where the group itself stands for what its images say."""
    if unlearner == "uniform":
        return any_other(len(names), number)
    prototypes = prototypes_of(names, config, embed)
    return alike(prototypes[number], prototypes, number, beta=config.beta, eta=config.eta)


def other_classes(dataset: Dataset, names: Sequence[str], chance: Float[np.ndarray, " g"]) -> AnchorsOf:
    """Return the function that draws another class for each image."""
    classes = dataset.card.classes
    labels = [classes.index(name) if classes else int(name) for name in names]
    one_hot = torch.eye(dataset.card.condition_dim)[labels]

    def of_images(idx: Int64[Tensor, " b"], stream: np.random.Generator) -> Anchors:
        drawn = stream.choice(len(labels), size=len(idx), p=chance)
        return Anchors(condition={"condition": one_hot[torch.from_numpy(drawn)]})

    return of_images


def captions_of(dataset: Dataset, members: Collection[int]) -> dict[int, str]:
    """Return the first caption of each image of a group."""
    members = frozenset(members)
    tables = (table.to_pylist() for table in dataset.stream("train", ["idx", "text"]))
    return {row["idx"]: (row["text"] or [""])[0] for rows in tables for row in rows if row["idx"] in members}


def check_encoder(dataset: Dataset, captions: Mapping[int, str], embed: Embed) -> None:
    """Raise InputError if the data set's conditions are not these embeddings of its captions."""
    idx = min(captions)
    (stored,) = (
        row["condition"][0]
        for table in dataset.stream("train", ["idx", "condition"])
        for row in table.filter(np.asarray(table["idx"]) == idx).to_pylist()
    )
    found = embed([captions[idx]])[0]
    known = np.asarray(stored)
    if known.shape != found.shape or known @ found < SAME_DIRECTION * np.linalg.norm(known) * np.linalg.norm(found):
        raise InputError(
            f"the captions of {dataset.url} are not embedded by CLIP's text tower, by which prompts of other groups"
            " would be; prepare it again, or unlearn with matched"
        )


def parts_of(captions: Mapping[int, str], template: Template) -> dict[int, Prompt]:
    """Return the parts of captions. InputError, with examples, if some do not have the form of the template."""
    prompts = {idx: template.take_apart(caption) for idx, caption in captions.items()}
    others = [idx for idx, prompt in prompts.items() if not prompt.words]
    if others:
        raise InputError(
            f"{len(others):,} of {len(prompts):,} captions of the group do not have the form of groups.template,"
            f" {template.text!r}, e.g. {captions[others[0]]!r} of idx={others[0]}"
        )
    return prompts


def as_condition(embedded: Float32[np.ndarray, "b d"]) -> dict[str, Tensor]:
    """Return embeddings as the condition of a batch."""
    return {"condition": torch.from_numpy(embedded)}


def without_groups(captions: Mapping[int, str], template: Template, embed: Embed) -> AnchorsOf:
    """Return the function that finds the captions of images without what they say of the group."""
    short = {idx: template.without_group(caption) for idx, caption in captions.items()}
    texts = sorted(set(short.values()))
    place, embedded = {text: n for n, text in enumerate(texts)}, embed(texts)
    return lambda idx, stream: Anchors(condition=as_condition(embedded[[place[short[n]] for n in idx.tolist()]]))


class OtherPrompts:
    """A maker of prompts with the content of an image and the words of another group."""

    def __init__(
        self,
        prompts: Mapping[int, Prompt],
        unlearner: Unlearner,
        names: Sequence[str],
        number: int,
        config: GroupsConfig,
        embed: Embed,
    ) -> None:
        """Find how likely each group is for each image of group `number`, whose prompts these are."""
        self.prompts, self.config, self.embed = prompts, config, embed
        self.template, self.words = Template(config.template), words_of(names, config)
        if unlearner == "uniform":
            self.chances = dict.fromkeys(prompts, any_other(len(names), number))
            return
        prototypes = prototypes_of(names, config, embed)

        @cache
        def by_words(words: tuple[str, ...]) -> Float[np.ndarray, " g"]:
            return alike(mean_direction(embed(words)), prototypes, number, beta=config.beta, eta=config.eta)

        self.chances = {idx: by_words(prompt.words) for idx, prompt in prompts.items()}

    def __call__(self, idx: Int64[Tensor, " b"], stream: np.random.Generator) -> Anchors:
        """Draw another group and some of its words for each image, and embed the prompts that these make."""
        return Anchors(condition=as_condition(self.embed([self.drawn(number, stream) for number in idx.tolist()])))

    def drawn(self, idx: int, stream: np.random.Generator) -> str:
        """Draw the prompt of an image."""
        words = self.words[stream.choice(len(self.words), p=self.chances[idx])]
        picked = stream.permutation(len(words))[: self.config.words]
        return self.template.filled(self.prompts[idx].content, [words[number] for number in picked])


def matched(cut: GroupImages, dataset: Dataset, group: str, content: Sequence[str]) -> AnchorsOf:
    """Return the function that draws an image of other groups with the same content, out of all of them.

    InputError, with examples, if images of the group have no like.
    """
    tables = (table.to_pylist() for table in dataset.stream("train", ["idx", *content]))
    content_of = {row["idx"]: tuple(row[column] for column in content) for rows in tables for row in rows}
    alike_rows: dict[tuple[object, ...], list[int]] = {}
    for row in cut.rows["retain"].tolist():
        alike_rows.setdefault(content_of[int(cut.idx[row])], []).append(row)
    own = cut.idx[cut.rows["forget"]].tolist()
    if alone := [idx for idx in own if content_of[idx] not in alike_rows]:
        examples = ", ".join(f"idx={idx}" for idx in alone[:SHOWN])
        raise InputError(
            f"{len(alone):,} of {len(own):,} images of group {group!r} have no like of the same {', '.join(content)} in"
            f" other groups, e.g. {examples}; choose other columns as groups.content"
        )

    def of_images(idx: Int64[Tensor, " b"], stream: np.random.Generator) -> Anchors:
        rows = [stream.choice(alike_rows[content_of[number]]) for number in idx.tolist()]
        other = cut.images.batch(np.array(rows))
        return Anchors(condition=other.condition, z=other.z)

    return of_images
