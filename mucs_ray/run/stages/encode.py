"""The training images and captions are brought into the space of the model, once for all methods and items."""

from mucs_ray.data.encoded import CAPTIONS
from mucs_ray.engine.encoding import EncodeJob, encode_all
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import ENCODE, Pipeline
from mucs_ray.run.stages.files import Output, digests
from mucs_ray.store.parts import unit_part


def encode(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Encode the units that an earlier command has not encoded, and the captions if their table is not there."""
    stage, units = pipeline.stages[ENCODE], pipeline.dataset.units("train")
    parts, captions = {unit_part(stage, unit): unit for unit in units}, stage.part(CAPTIONS, "safetensors")
    absent = stage.begin([*parts, captions])
    missing = [unit for file, unit in parts.items() if file in absent]
    total = sum(unit.rows for unit in units)
    job = EncodeJob(dataset=pipeline.dataset, model=pipeline.recipe.model, stage=stage)
    with bar(pipeline.console, ENCODE, total, "images", pipeline.events) as progress:
        progress.start_at(total - sum(unit.rows for unit in missing))
        table = captions if captions in absent else ""
        new = encode_all(job, missing, table, cluster=cluster, bar=progress)
    return digests(stage, [*parts, captions], new), {}
