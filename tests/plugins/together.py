"""A MUCS that scores its first units anywhere, and then waits until a second node has scored one too.

Each node that scores writes a file, with one line for each unit, in the folder MUCS_RAY_TOGETHER.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import ray

from mucs_ray.attribution.base import Columns
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.diffusion.batch import Batch

ALONE = 3
"""The number of units before the wait."""
PATIENCE_S = 120


def units_by_node() -> dict[str, int]:
    """Return the number of units that each node has scored."""
    folder = Path(os.environ["MUCS_RAY_TOGETHER"])
    return {file.name: len(file.read_text().splitlines()) for file in folder.iterdir()}


class TogetherMUCS(MUCS):
    """A method with the same scores as MUCS."""

    card = replace(MUCS.card, name="together-mucs")

    def columns(self, rows: Batch) -> Columns:
        scored_here = Path(os.environ["MUCS_RAY_TOGETHER"], ray.get_runtime_context().get_node_id())
        with scored_here.open("a") as file:
            print(int(rows.idx[0]), file=file)
        deadline = time.monotonic() + PATIENCE_S
        while len(scored := units_by_node()) == 1 and sum(scored.values()) > ALONE and time.monotonic() < deadline:
            time.sleep(0.1)
        return super().columns(rows)
