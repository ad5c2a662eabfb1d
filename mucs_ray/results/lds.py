"""The numbers of the linear datamodeling score (LDS) of a run whose models of subsets are done."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mucs_ray import storage
from mucs_ray.attribution.registry import find_method
from mucs_ray.errors import InputError
from mucs_ray.evaluation.lds import LEAST_SUBSETS, LOSS, Lds, Measured, lds
from mucs_ray.evaluation.subsets import chosen, is_uniform
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.lds_stages import BLOCKS, LDS, SIMILARITY
from mucs_ray.report.document import LdsSection
from mucs_ray.report.lds_tables import headline, lds_section
from mucs_ray.store.parts import matrix, read_part, stored_scores
from mucs_ray.store.run import Stage
from mucs_ray.store.typed import typed

JSON_FILE, CSV_FILE = "lds.json", "lds.csv"
COLUMNS = ("subsets", "method", "f", "lds", "low", "high", "difference", "difference_low", "difference_high")


def write(pipeline: Pipeline) -> tuple[dict[str, str], dict[str, Any]]:
    """Publish lds.json and lds.csv, and return their digests and facts."""
    stage = pipeline.stage(LDS)
    methods = [name.removeprefix("attribute/") for name in stage.inputs if name.startswith("attribute/")]
    scores = compute(pipeline, methods)
    stage.begin([JSON_FILE, CSV_FILE])
    stage.retract()
    texts = {JSON_FILE: json.dumps(asdict(scores), indent=1), CSV_FILE: as_csv(scores)}
    files = {name: storage.publish(stage.url(name), text.encode()) for name, text in texts.items()}
    return files, {"methods": methods, "versus": scores.versus}


def finished(pipeline: Pipeline) -> Lds | None:
    """Read the scores of a run; None if they are not done under its present settings."""
    if not pipeline.has_lds():
        return None
    stage = pipeline.stage(LDS)
    return typed(json.loads(stage.checked(JSON_FILE)), Lds, stage.url(JSON_FILE))


def section(pipeline: Pipeline) -> LdsSection | None:
    """Lay out the report's section; None if the scores are not done."""
    scores = finished(pipeline)
    return None if scores is None else lds_section(scores, labels(scores))


def sentence(scores: Lds) -> str:
    """Return the result in words."""
    return headline(scores, labels(scores))


def labels(scores: Lds) -> dict[str, str]:
    """Return the names of the methods in tables."""
    return {method.method: find_method(method.method).label for method in scores.kinds[0].methods}


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return the scores as JSON values under "lds"; nothing if they are not done."""
    scores = finished(pipeline)
    return {} if scores is None else {"lds": asdict(scores)}


def compute(pipeline: Pipeline, methods: Sequence[str]) -> Lds:
    """Return the scores of these methods. InputError if the method to compare with is not among them."""
    recipe = pipeline.recipe
    if recipe.lds.versus not in ("", *methods):
        raise InputError(
            f"lds.versus is {recipe.lds.versus}, whose attribution is not finished here; add it to --method"
        )
    stage = pipeline.stage(SIMILARITY)
    table = read_part(stage.checked(stage.part("similarity", "parquet")))
    subset, repeat = (table[name].to_numpy(zero_copy_only=False) for name in ("subset", "repeat"))
    names = [name for name in table.column_names if name not in ("subset", "repeat")]
    seen = {name: matrix(table, name).astype(np.float64) * (-1 if name == LOSS else 1) for name in names}
    members = memberships(pipeline, subset[~repeat].tolist())
    predicted = {method: sums(pipeline.stages[f"attribute/{method}"], *members) for method in methods}
    uniform = np.asarray([is_uniform(int(number)) for number in subset])

    def measured(kind: str, of_kind: np.ndarray, strata: np.ndarray) -> Measured:
        """Select the subsets of one kind; the repeats follow the models of subsets, in the same order."""
        first, again = of_kind & ~repeat, of_kind & repeat
        twice = first & np.isin(subset, subset[repeat])
        return Measured(
            kind=kind,
            predicted={method: table[of_kind[~repeat]] for method, table in predicted.items()},
            seen={name: f[first] for name, f in seen.items()},
            strata=strata[first],
            repeated={name: (f[twice], f[again]) for name, f in seen.items()},
            repeated_strata=strata[again],
        )

    everything, together = np.ones_like(uniform), np.zeros(len(uniform), dtype=np.int64)
    kinds = {
        "all": (everything, uniform.astype(np.int64)),
        "pooled": (everything, together),
        "uniform": (uniform, together),
        "blocks": (~uniform, together),
    }
    every = [measured(kind, *rows) for kind, rows in kinds.items() if (rows[0] & ~repeat).sum() >= LEAST_SUBSETS]
    return lds(every, versus=recipe.lds.versus, seed=recipe.seed)


def memberships(pipeline: Pipeline, subsets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the idx of all training images, in ascending order, and whether each is in each subset [s, n]."""
    recipe, (idx, block) = pipeline.recipe, read_blocks(pipeline)
    order, size = np.argsort(idx), recipe.lds.subset_size(len(idx))
    rows = []
    for number in subsets:
        kept = chosen(number, idx, block, size=size, seed=recipe.seed)
        rows.append(np.isin(idx[order], list(kept)))
    return idx[order], np.stack(rows)


def sums(attribution: Stage, idx: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the sum of a method's scores over each subset [s, m]."""
    total: np.ndarray | float = 0.0
    for table in stored_scores(attribution):
        rows, scores = np.searchsorted(idx, table["idx"].to_numpy()), matrix(table, "score").astype(np.float64)
        total = total + members[:, rows].astype(np.float64) @ scores
    return np.asarray(total)


def read_blocks(pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """Return the idx of each training image and its block of look-alikes."""
    stage = pipeline.stage(BLOCKS)
    table = read_part(stage.checked(stage.part("blocks", "parquet")))
    return table["idx"].to_numpy(), table["block"].to_numpy()


def as_csv(scores: Lds) -> str:
    """Return one line for each kind of subsets, method and f."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for kind in scores.kinds:
        for method in kind.methods:
            for name, score in method.scores.items():
                values = [score.mean, score.low, score.high]
                if compared := method.differences.get(name):
                    values += [compared.mean, compared.low, compared.high]
                writer.writerow([kind.kind, method.method, name, *(f"{value:.6f}" for value in values)])
    return text.getvalue()
