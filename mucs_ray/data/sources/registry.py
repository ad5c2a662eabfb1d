"""Sources by name: the built-in ones and those of installed packages (entry points `mucs_ray.sources`)."""

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from mucs_ray.data.sources import Source
from mucs_ray.errors import InputError, MachineError

SOURCES = ("emoji", "cifar10", "artbench10", "coco", "unlearncanvas", "folder", "parquet", "webdataset")
GROUP = "mucs_ray.sources"


def load_source(name: str) -> Source:
    """Return a source by its name. InputError if there is none; MachineError if an installed one cannot be imported."""
    if name in SOURCES:
        return cast(Source, import_module(f"mucs_ray.data.sources.{name}"))
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in installed:
        names = sorted({*SOURCES, *installed})
        matches = get_close_matches(name, names, n=1)
        hint = f"; did you mean {matches[0]}?" if matches else ""
        raise InputError(f"no data source named {name!r}{hint} (known: {', '.join(names)})")
    try:
        return cast(Source, installed[name].load())
    except (ImportError, AttributeError) as error:
        raise MachineError(f"data source {name} ({installed[name].value}) cannot be imported: {error}") from None
