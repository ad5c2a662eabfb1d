"""The work of each stage of the pipeline: it reads earlier stages' files and publishes its own.

Every stage returns the digests of its files and the facts for its manifest (`mucs_ray.run.stages.files.Output`).
"""

from collections.abc import Iterator, Sequence

from mucs_ray.engine.session import Cluster
from mucs_ray.errors import MucsError
from mucs_ray.pipeline.graph import UNRELATED, StageRef
from mucs_ray.pipeline.lds_stages import OUTPUTS
from mucs_ray.run.stages import (
    attribute,
    encode,
    generate,
    group_result,
    groups,
    lds,
    one_pass,
    queries,
    query_test,
    rank,
    regenerate,
    train,
)
from mucs_ray.run.stages.files import Output


def run_together(refs: Sequence[StageRef], cluster: Cluster) -> Iterator[tuple[StageRef, Output | MucsError]]:
    """Run these stages and yield each, as soon as it has ended, with its output or the error that ended it alone.

    They are trainings, or models of subsets whose outputs are computed, or stages of one run that share a pass over the
    training set, or a single other stage.
    """
    if refs[0].is_training:
        return train.train(refs, cluster)
    if refs[0].phase == OUTPUTS:
        return lds.outputs(refs, cluster)
    if refs[0].streams:
        return one_pass.run_pass(refs, cluster)
    return ((ref, run_stage(ref, cluster)) for ref in refs)


def run_stage(ref: StageRef, cluster: Cluster) -> Output:
    """Run a stage that is neither a training nor part of a pass over the training set."""
    pipeline, name = ref
    match name.split("/"):
        case ["pretrain"]:
            return generate.import_checked_weights(pipeline)
        case ["encode"]:
            return encode.encode(pipeline, cluster)
        case ["generate"]:
            return queries.read(pipeline) if pipeline.queries else generate.generate(pipeline, cluster)
        case ["generate", "fresh"]:
            return query_test.generate_fresh(pipeline, cluster)
        case ["attribute", *_]:
            spec = pipeline.method_stages[name]
            return attribute.run_hook(pipeline, spec, cluster) if spec.method_stage else rank.rank(pipeline, spec)
        case ["regenerate", *method]:
            again = query_test.regenerate if pipeline.queries else regenerate.regenerate
            return again(pipeline, "/".join(method), cluster)
        case ["evaluate", *key]:
            module = query_test if pipeline.queries else regenerate
            compare = module.unrelated if key == [UNRELATED] else module.evaluate
            return compare(pipeline, "/".join(key), cluster)
        case ["lds", "blocks"]:
            return lds.blocks(pipeline)
        case ["lds", "similarity"]:
            return lds.similarity(pipeline, cluster)
        case ["groups", "members"]:
            return groups.members(pipeline)
        case ["groups", "unlearn", unlearner]:
            return groups.unlearn(pipeline, unlearner, cluster)
        case ["groups", "score", model]:
            return groups.score(pipeline, model, cluster)
        case ["groups", "result"]:
            return group_result.write(pipeline)
        case _:
            raise AssertionError(f"no code runs stage {name}")
