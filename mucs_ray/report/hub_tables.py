"""The report's section on hubs: a table of all methods, and each method's most frequent training images."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mucs_ray.evaluation.hubs import Hubs
from mucs_ray.report.document import Cell, HubImage, HubRow, HubSection, Picture, Table
from mucs_ray.report.wording import NBSP, note, percent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingImage:
    """What the report shows of a training image."""

    label: str
    text: str
    name: str = ""
    image: Picture


def hub_section(
    hubs_of: Mapping[str, Hubs], images: Mapping[int, TrainingImage], *, pictured: Collection[str] | None = None
) -> HubSection | None:
    """Lay out the section on hubs; None if there are fewer than two lists for each method.

    `hubs_of` is keyed by the method's label; the methods in `pictured` (None = all) are shown with images. `images` is
    keyed by idx and holds every image that is `most_frequent` for those methods.
    """
    hubs_of = {method: hubs for method, hubs in hubs_of.items() if hubs.num_lists > 1}
    if not hubs_of:
        return None
    pictured_hubs = {method: hubs for method, hubs in hubs_of.items() if pictured is None or method in pictured}
    return HubSection(
        table=_table(hubs_of), rows=tuple(_row(method, hubs, images) for method, hubs in pictured_hubs.items())
    )


def _row(method: str, hubs: Hubs, images: Mapping[int, TrainingImage]) -> HubRow:
    frequent_images = [(frequent, images[frequent.idx]) for frequent in hubs.most_frequent]
    return HubRow(
        method=method,
        num_lists=hubs.num_lists,
        images=tuple(
            HubImage(
                idx=frequent.idx,
                lists=frequent.lists,
                label=image.label,
                text=image.text,
                name=image.name,
                image=image.image,
            )
            for frequent, image in frequent_images
        ),
    )


def _table(hubs_of: Mapping[str, Hubs]) -> Table:
    return Table(
        key="hubs",
        title="Do the same training images come up for every image?",
        note=note(
            "By chance: with lists drawn at random. Most lists: how many hold the image that is in most; by chance, "
            f"with a probability of 95{NBSP}%, no image is in more (binomial, Bonferroni-corrected for all training "
            "images). Hubs: images that are. Places of the top 1 %: the share of all places in lists that the most "
            "frequent 1 % of the training set takes. Nearer to chance is more specific to the generated image, but "
            "images of one class may rightly share some."
        ),
        columns=("Method", "Lists", "Most lists", "Hubs", "Places of the top 1 %", "Different images"),
        rows=tuple(_cells(method, hubs) for method, hubs in hubs_of.items()),
    )


def _cells(method: str, hubs: Hubs) -> tuple[Cell, ...]:
    return (
        Cell(text=method),
        Cell(text=f"{hubs.num_lists:,}", note=f"of {hubs.top_k:,}"),
        Cell(text=f"{hubs.most_frequent[0].lists:,}", note=_by_chance(f"{hubs.most_by_chance:,}")),
        Cell(text=f"{hubs.num_hubs:,}"),
        Cell(text=percent(100 * hubs.share), note=_by_chance(percent(100 * hubs.share_by_chance))),
        Cell(text=f"{hubs.union:,}", note=_by_chance(f"{hubs.union_by_chance:,}")),
    )


def _by_chance(text: str) -> str:
    return f"by chance {text}"
