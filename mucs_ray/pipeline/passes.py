"""The grouping of stages into passes: stages that can stream the training set at the same time do so together.

Each image of a pass is read and decoded once for all its stages, and its workers are started once.
"""

from collections.abc import Collection, Iterator, Mapping


def in_passes(
    inputs: Mapping[str, Collection[str]], streamed: Collection[str], max_stages: int = 0
) -> Iterator[tuple[str, ...]]:
    """Yield all stages so that each comes after its inputs: those of one pass together, all others one by one.

    `inputs` holds the stages that are not done, in order, and the inputs of each; an input that is not among its keys
    is done. A pass is put off as long as another stage can run, so that it has as many of the `streamed` stages as
    possible, but at most `max_stages` if that is not 0.
    """
    waiting = dict(inputs)
    while waiting:
        ready = [name for name, earlier in waiting.items() if not waiting.keys() & set(earlier)]
        alone = [name for name in ready if name not in streamed]
        together = tuple(alone[:1] or ready[: max_stages or None])
        assert together, f"stages that wait for each other: {', '.join(waiting)}"
        yield together
        for name in together:
            del waiting[name]
