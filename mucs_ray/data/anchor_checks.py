"""What awss, uniform, style-removed and matched need of a data set, checked before anything is computed."""

from mucs_ray.attribution.forgetting.anchors import Template
from mucs_ray.attribution.forgetting.config import ANCHORED, GroupsConfig
from mucs_ray.data.groups import Groups
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError

BY_OTHERS = ("awss", "uniform")
"""Those that draw another group by its name."""


def check_anchors(config: GroupsConfig, groups: Groups, card: Card, *, conditional: bool) -> None:
    """Raise InputError if one of the unlearners lacks what it needs of the data set, the groups or the recipe."""
    anchored = [unlearner for unlearner in config.unlearners if unlearner in ANCHORED]
    if not anchored:
        return
    by_condition = [unlearner for unlearner in anchored if unlearner != "matched"]
    if by_condition and (not conditional or card.condition == "none"):
        raise InputError(
            f"groups.unlearners has {by_condition[0]}, which needs a model with classes or captions; choose others"
        )
    by_others = [unlearner for unlearner in anchored if unlearner in BY_OTHERS]
    are_classes = groups.by == "label" or set(groups.names) <= set(card.classes)
    if by_others and card.condition == "label" and not are_classes:
        raise InputError(
            f"groups.unlearners has {by_others[0]}, which shows images as another class, and groups are by {groups.by};"
            " expected groups.by = label, or a data set with captions that say the group"
        )
    if by_condition and card.condition == "embedding" and (problem := Template(config.template).problem()):
        raise InputError(f"groups.template is {config.template!r}; {problem}")
    if "matched" in anchored:
        check_content(config, card)
    for group, words in config.descriptors.items():
        if group not in groups.names:
            raise InputError(f"groups.descriptors has {group!r}, which is no group of {groups.by}")
        if not words:
            raise InputError(f"groups.descriptors has no word for {group!r}; leave it out, and its name is taken")


def check_content(config: GroupsConfig, card: Card) -> None:
    """Raise InputError if nothing says what is in an image."""
    known = [*card.tags, *(("label",) if card.classes else ())]
    told = f"the columns that say what is in an image; there are {', '.join(known) or 'none'}"
    if not config.content:
        raise InputError(f"groups.unlearners has matched, which needs groups.content, {told}")
    for column in config.content:
        if column not in known:
            raise InputError(f"groups.content has {column!r}, expected {told}")
