"""What is found by trying is found once before a pass, by one worker on the first unit, and kept beside the parts: a
resumed pass, and every worker, computes as the first one did.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from mucs_ray import storage
from mucs_ray.attribution.tuning import OPEN, RANK_MODELS, Tuning, tune
from mucs_ray.config.recipe import Recipe, with_values
from mucs_ray.data.table import Unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine.attributors import AttributeJob, Refs, captures_graphs, to_rows
from mucs_ray.engine.models import best_device, build_denoiser, to_tensors
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.reading import read_rows
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units


def settled(recipe: Recipe, found: Tuning) -> Recipe:
    """The recipe with nothing left open."""
    return with_values(recipe, {f"score.{knob}": getattr(found, knob) for knob in OPEN})


def tune_task(refs: Refs, job: AttributeJob, unit: Unit, share: int) -> Tuning:
    """In a worker."""
    weights, _, adapted = refs.fetch()
    assert weights is not None
    device = best_device()
    batch = to_rows(job, read_rows(job.features, unit), device)
    assert isinstance(batch, Batch)
    return tune(
        build_denoiser(job.recipe.model, weights, device),
        batch,
        job.recipe.score,
        share,
        bank=[to_tensors(arrays, device) for arrays in adapted[:RANK_MODELS]],
        captures=captures_graphs(job.recipe, device),
    )


def tuned(
    job: AttributeJob, refs: Refs, todo: Sequence[Unit], file: str, *, cluster: Cluster, bar: Bar
) -> tuple[AttributeJob, dict[str, str]]:
    """The job with nothing left open, and the sha256 of `file`, which says how."""
    url = job.stage.url(file)
    if storage.exists(url):
        found = Tuning(**storage.read_json(url))
        return replace(job, recipe=settled(job.recipe, found)), {}
    counts = {"num_images": sum(unit.rows for unit in todo), "num_items": job.recipe.generate.items}
    forwards = job.attributor.passes(job.part, job.recipe, **counts).forwards
    share = forwards // min(cluster.num_workers, len(todo))
    ((_, found),) = run_units(tune_task, {"tuning": (refs, job, todo[0], share)}, cluster=cluster, bar=bar)
    return replace(job, recipe=settled(job.recipe, found)), {file: storage.publish_json(url, asdict(found))}
