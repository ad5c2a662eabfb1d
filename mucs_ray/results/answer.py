"""The answer of an attribution as an object: tables, arrays, pictures, and what a notebook shows."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float32, Int64
from PIL import Image

from mucs_ray.data.table import Dataset, open_parquet
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.results import counterfactual, report
from mucs_ray.spaces.pictures import as_image
from mucs_ray.store.items import load_item, shown
from mucs_ray.store.topk import TOPK_FILE, read_topk


class Scores(NamedTuple):
    """The scores of one method."""

    scores: Float32[np.ndarray, "q n"]
    """One row for each picture, one column for each training image; higher is more influential."""
    idx: Int64[np.ndarray, " n"]
    """The number of each training image, ascending."""
    queries: list[str]
    """The name of each picture, or the number of each generated image."""


class Answer:
    """What an attribution found, read off its run directory."""

    def __init__(self, pipeline: Pipeline, asked: Sequence[str] = ()) -> None:
        """Keep the run and the methods that were asked for; `Run.attribute` makes these."""
        self._pipeline = pipeline
        self.url = pipeline.run_url
        """The URL of the run directory, or of the folder of these pictures in it."""
        finished = report.shown_methods(pipeline)
        self.methods: list[str] = list(dict.fromkeys([*(name for name in asked if name in finished), *finished]))
        """The methods whose answers are there: first those that were asked for, in that order. The first is the default
        of all that follows."""
        generated = range(pipeline.recipe.generate.items)
        self.queries: list[str] = [query.name for query in pipeline.queries] or [str(number) for number in generated]
        """The names of the pictures, or the numbers of the generated images, in the order of all tables and arrays."""

    @property
    def dataset(self) -> Dataset:
        """The training set."""
        return self._pipeline.dataset

    @property
    def report(self) -> str:
        """The URL of the report, a page that needs no network."""
        return f"{self.url}/report.html"

    def top(self, k: int | None = None, *, method: str | None = None) -> pa.Table:
        """Return the most influential training images of each picture, best first.

        The columns are query, rank, idx, score, label, text and name; `k` is at most the length of topk.csv.
        """
        rows = read_topk(self._stage(method))
        return pa.Table.from_pylist(
            [
                {
                    "query": self.queries[number],
                    "rank": int(row["rank"]),
                    "idx": int(row["idx"]),
                    "score": float(row["score"]),
                    **{name: row.get(name, "") for name in ("label", "text", "name")},
                }
                for number, ranked in rows.items()
                for row in ranked[:k]
            ]
        )

    def scores(self, method: str | None = None) -> Scores:
        """Return the scores of every training image; they take 4 bytes for each picture and training image."""
        file = open_parquet(io.BytesIO(self._stage(method).checked("scores.parquet")))
        table = file.read()
        idx = table["idx"].to_numpy()
        scores = np.stack(table["score"].to_numpy()).astype(np.float32)
        order = np.argsort(idx)
        return Scores(np.ascontiguousarray(scores[order].T), idx[order], self.queries)

    def to_quanda(self, method: str | None = None) -> Scores:
        """Return scores [queries, N], as quanda's metrics take explanations, with the idx of the columns."""
        return self.scores(method)

    def to_dattri(self, method: str | None = None) -> Scores:
        """Return scores [queries, N] with the idx of the columns; dattri's metrics take the transposed, `.scores.T`."""
        return self.scores(method)

    def to_csv(self, path: str | Path, *, method: str | None = None) -> None:
        """Write the top-k lists of a method to a file on this machine, as topk.csv of the run has them."""
        Path(path).write_bytes(self._stage(method).checked(TOPK_FILE))

    def to_parquet(self, path: str | Path, *, method: str | None = None) -> None:
        """Write all scores: the column idx, and a column score_QUERY for each picture by its place."""
        scores, idx, _ = self.scores(method)
        columns = {"idx": idx, **{f"score_{number}": row for number, row in enumerate(scores)}}
        pq.write_table(pa.table(columns), path, compression="zstd")

    def image(self, number: int) -> Image.Image:
        """Return a picture that is explained, by its place in `queries`."""
        codec = adapter(self._pipeline.recipe.model).codec(torch.device("cpu"))
        return as_image(shown(load_item(self._pipeline.stages["generate"], number), codec))

    def training_image(self, idx: int) -> Image.Image:
        """Return a training image. InputError if there is none of this number."""
        rows = self.dataset.find({idx}, "train")
        if idx not in rows:
            raise InputError(f"there is no training image {idx}")
        return as_image(rows[idx].image)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The statistics of the counterfactual test, as in report.json; None if it was not made."""
        return counterfactual.as_json(counterfactual.analyses_of([self._pipeline]))["evaluation"]

    @property
    def warnings(self) -> list[str]:
        """Sentences on what makes an answer worthless, if anything does."""
        return report.warnings(self._pipeline)

    def _stage(self, method: str | None) -> Any:  # noqa: ANN401 - a Stage
        chosen = method or self.methods[0]
        if chosen not in self.methods:
            raise InputError(f"there is no answer of {chosen}; there are {', '.join(self.methods)}")
        return self._pipeline.stages[f"attribute/{chosen}"]

    def __repr__(self) -> str:
        """Return one line."""
        return f"<mucs_ray.Answer: {len(self.queries)} pictures by {', '.join(self.methods)}; {self.report}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: each picture and its most influential training images."""
        from mucs_ray.results.notebook import html

        return html(self)
