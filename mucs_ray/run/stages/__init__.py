"""What each stage of the pipeline does: from the earlier stages' files to its own files and facts.

Every stage returns ({file name: sha256}, facts) for its manifest.
"""

from collections.abc import Iterator, Sequence

from mucs_ray.engine.session import Cluster
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import UNRELATED, StageRef
from mucs_ray.run.stages import attribute, generate, one_pass, queries, rank, regenerate, train
from mucs_ray.run.stages.files import Output


def run_together(refs: Sequence[StageRef], cluster: Cluster) -> Iterator[tuple[StageRef, Output | MucsError]]:
    """Each of these stages with its output, or with why it failed while the others went on, as soon as that is known.

    They are trainings, or stages of one run that share a pass over the training set, or else only one.
    """
    if refs[0].is_training:
        return train.train(refs, cluster)
    if refs[0].streams:
        return one_pass.run_pass(refs, cluster)
    return ((ref, run_stage(ref, cluster)) for ref in refs)


def run_stage(ref: StageRef, cluster: Cluster) -> Output:
    """Do a stage that is neither a training nor one of a pass over the training set."""
    pipeline, name = ref
    match name.split("/"):
        case ["pretrain"]:
            return generate.import_weights(pipeline)
        case ["generate"]:
            return queries.read(pipeline) if pipeline.queries else generate.generate(pipeline, cluster)
        case ["attribute", *_]:
            spec = pipeline.method_stages[name]
            return attribute.run_hook(pipeline, spec, cluster) if spec.method_stage else rank.rank(pipeline, spec)
        case ["regenerate", *method]:
            return regenerate.regenerate(pipeline, "/".join(method), cluster)
        case ["evaluate", *key]:
            compare = regenerate.unrelated if key == [UNRELATED] else regenerate.evaluate
            return compare(pipeline, "/".join(key), cluster)
        case _:
            raise AssertionError(f"nothing does stage {name}")
