"""The file recipe.json of a run directory: the run's recipe, and how the run was asked for.

It is enough to open the run again from any folder, without the file of its weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mucs_ray import storage
from mucs_ray.data.queries import Query, from_json, model_url, to_json
from mucs_ray.errors import InputError
from mucs_ray.store.run import read_json_or_none

RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """The content of recipe.json."""

    recipe: Mapping[str, Any]
    """The recipe's values by section, with the URL of the data set as it was opened."""
    weights_sha256: str | None = None
    """The digest of the recipe's `weights`; None if it has none."""
    base_sha256: str | None = None
    """The digest of the base of a fine-tune; None if the recipe names none."""
    methods: tuple[str, ...] = ("mucs",)
    weights_dir: str | None = None
    learned: Mapping[str, float] = field(default_factory=dict)
    """The weights of ensemble/learned; empty if the run does not use it."""
    queries: tuple[Query, ...] = ()
    """The user's pictures that are explained; empty if the run generates them."""

    def to_json(self) -> dict[str, Any]:
        """Return the file's content, which has the recipe's values beside the others."""
        others: dict[str, Any] = {
            "weights_sha256": self.weights_sha256,
            "methods": self.methods,
            "weights_dir": self.weights_dir,
        }
        if self.base_sha256:
            others["base_sha256"] = self.base_sha256
        if self.learned:
            others["learned"] = dict(self.learned)
        if self.queries:
            others["queries"] = to_json(self.queries)
        return {**self.recipe, **others}


def read_recorded_run(run_url: str, *, whole: bool = False) -> RecordedRun | None:
    """Read recipe.json of a run directory; None if there is none.

    InputError if a `whole` run is wanted, and this is only the answer for a user's pictures in one.
    """
    values = read_json_or_none(storage.join(run_url, RECIPE_FILE))
    if values is None:
        return None
    if whole and "queries" in values:
        raise InputError(f"{run_url} is the answer for pictures, a part of a run; give --run {model_url(run_url)}")
    return RecordedRun(
        weights_sha256=values.pop("weights_sha256", None),
        methods=tuple(values.pop("methods", ("mucs",))),
        base_sha256=values.pop("base_sha256", None),
        weights_dir=values.pop("weights_dir", None),
        learned=values.pop("learned", {}),
        queries=from_json(values.pop("queries", [])),
        recipe=values,
    )
