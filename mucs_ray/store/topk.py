"""The file topk.csv, the result of an attribution.

Its columns are item, item_idx, rank (1 = most influential), idx, score, label, text and name.
"""

import csv
import io
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64

from mucs_ray.store.run import Stage

TOPK_FILE = "topk.csv"
COLUMNS = ("item", "item_idx", "rank", "idx", "score", "label", "text", "name")


def topk_bytes(rows: Iterable[tuple[object, ...]]) -> bytes:
    """Return the file's content."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue().encode()


def read_topk(stage: Stage) -> dict[int, list[dict[str, str]]]:
    """Read the rows of a finished attribution by item, best first."""
    rows: dict[int, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(stage.checked(TOPK_FILE).decode())):
        rows.setdefault(int(row["item"]), []).append(row)
    return rows


def top_lists(stage: Stage) -> list[Int64[np.ndarray, " k"]]:
    """Return the idx of the top-k of each item, best first."""
    rows_of = read_topk(stage)
    return [np.asarray([int(row["idx"]) for row in rows_of[item]], dtype=np.int64) for item in sorted(rows_of)]
