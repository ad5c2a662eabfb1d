"""Settings that are "auto" are found by trying, once before a pass, by one worker on the first unit.

They are kept beside the parts, so that a resumed pass and every worker compute with the same settings.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from mucs_ray import storage
from mucs_ray.attribution.tuning import AUTO_SETTINGS, RANK_MODELS, Tuning, tune
from mucs_ray.config.recipe import Recipe, with_values
from mucs_ray.data.table import Unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.engine.attributors import AttributeJob, Refs, captures_graphs, to_rows
from mucs_ray.engine.models import best_device, build_denoiser, to_tensors
from mucs_ray.engine.progress import Bar
from mucs_ray.engine.reading import read_rows
from mucs_ray.engine.session import Cluster
from mucs_ray.engine.units import run_units


def resolve_auto(recipe: Recipe, tuning: Tuning) -> Recipe:
    """Return the recipe with the settings that were found in place of every "auto"."""
    return with_values(recipe, {f"score.{setting}": getattr(tuning, setting) for setting in AUTO_SETTINGS})


def tune_task(refs: Refs, job: AttributeJob, unit: Unit, share: int) -> Tuning:
    """Call tune in a worker."""
    weights, _, item_states = refs.fetch()
    assert weights is not None
    device = best_device()
    batch = to_rows(job, read_rows(job.features, unit), device)
    assert isinstance(batch, Batch)
    return tune(
        build_denoiser(job.recipe.model, weights, device),
        batch,
        job.recipe.score,
        share,
        bank=[to_tensors(arrays, device) for arrays in item_states[:RANK_MODELS]],
        captures=captures_graphs(job.recipe, device),
    )


def tuned_job(
    job: AttributeJob, refs: Refs, units: Sequence[Unit], file: str, *, cluster: Cluster, bar: Bar
) -> tuple[AttributeJob, dict[str, str]]:
    """Return the job with the settings that were found in place of every "auto", and the sha256 of the `file` they are
    in.

    If the file exists, its settings are taken, and no sha256 is returned because nothing was written.
    """
    url = job.stage.url(file)
    if storage.exists(url):
        tuning = Tuning(**storage.read_json(url))
        return replace(job, recipe=resolve_auto(job.recipe, tuning)), {}
    counts = {"num_images": sum(unit.rows for unit in units), "num_items": job.recipe.generate.items}
    forwards = job.attributor.passes(job.method_stage, job.recipe, **counts).forwards
    share = forwards // min(cluster.num_workers, len(units))
    ((_, tuning),) = run_units(tune_task, {"tuning": (refs, job, units[0], share)}, cluster=cluster, bar=bar)
    return replace(job, recipe=resolve_auto(job.recipe, tuning)), {file: storage.publish_json(url, asdict(tuning))}
