"""What the report says of `retrain/loo` beside its ranking: how much of it is chance."""

from collections.abc import Iterator

from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.loo_stages import LOO_LOSSES
from mucs_ray.store.facts import LooFacts, read_facts
from mucs_ray.store.parts import matrix, read_part


def remarks(pipeline: Pipeline, number: int) -> Iterator[str]:
    """Yield how many images stand out from the floor, for a target; nothing if the losses are not measured."""
    stage = pipeline.stages.get(LOO_LOSSES)
    if stage is None or stage.state().status != "done":
        return
    facts = read_facts(stage, LooFacts)
    floor = abs(facts.another_seed[number] - facts.with_all_images[number])
    table = read_part(stage.checked(stage.part("losses", "parquet")))
    yield remark(matrix(table, "score")[:, number].tolist(), floor)


def remark(rises: list[float], floor: float) -> str:
    """Return how many rises of the loss are above what another seed alone changes."""
    above = sum(rise > floor for rise in rises)
    return (
        f"Without one image, its loss rises by {max(rises):.3g} at most; another seed of the training alone changes it"
        f" by {floor:.3g}. {above} of {len(rises)} images are above that floor, and the order of the others is chance."
    )
