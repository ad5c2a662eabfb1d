"""Which stages are done together: those that stream the training set at the same time, in one pass.

Each image of a pass is read and decoded once for all its stages, and its workers are started once.
"""

from collections.abc import Collection, Iterator, Mapping


def in_passes(
    inputs: Mapping[str, Collection[str]], streamed: Collection[str], most: int = 0
) -> Iterator[tuple[str, ...]]:
    """All stages, in an order in which each comes after its inputs; those of one pass together, all others alone.

    `inputs` has the stages that are to be done, in order, with what each reads; what is not to be done is there. A pass
    waits until nothing else can be done, so that as many of the `streamed` stages as possible are in it, but no more
    than `most`, if it is not 0.
    """
    left = dict(inputs)
    while left:
        ready = [name for name, read in left.items() if not any(each in left for each in read)]
        alone = [name for name in ready if name not in streamed]
        together = tuple(alone[:1] or ready[: most or None])
        assert together, f"stages that wait for each other: {', '.join(left)}"
        yield together
        for name in together:
            del left[name]
