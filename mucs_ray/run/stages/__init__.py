"""What each stage of the pipeline does: from the earlier stages' files to its own files and facts.

Every step returns ({file name: sha256}, facts) for the stage's manifest.
"""

from collections.abc import Iterator, Sequence

from mucs_ray.engine.session import Cluster
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import UNRELATED, Pipeline
from mucs_ray.run.stages import attribute, generate, one_pass, rank, regenerate
from mucs_ray.run.stages.files import Output


def together(pipeline: Pipeline, names: Sequence[str], cluster: Cluster) -> Iterator[tuple[str, Output | MucsError]]:
    """Stages by their names, done in one pass if they go over the training set; each with its output or its error."""
    if all(name in pipeline.tasks and pipeline.tasks[name].streams for name in names):
        yield from one_pass.stream(pipeline, [pipeline.tasks[name] for name in names], cluster)
    else:
        for name in names:
            yield name, work(pipeline, name, cluster)


def work(pipeline: Pipeline, name: str, cluster: Cluster) -> Output:
    """A stage of its own. Trainings are left to `mucs_ray.run.stages.train`, which runs several at once."""
    match name.split("/"):
        case ["pretrain"]:
            return generate.import_weights(pipeline)
        case ["generate"]:
            return generate.generate(pipeline, cluster)
        case ["attribute", *_]:
            task = pipeline.tasks[name]
            return attribute.work(pipeline, task, cluster) if task.part else rank.rank(pipeline, task)
        case ["regenerate", *method]:
            return regenerate.regenerate(pipeline, "/".join(method), cluster)
        case ["evaluate", *key]:
            compare = regenerate.unrelated if key == [UNRELATED] else regenerate.evaluate
            return compare(pipeline, "/".join(key), cluster)
        case _:
            raise AssertionError(f"no step for stage {name}")
