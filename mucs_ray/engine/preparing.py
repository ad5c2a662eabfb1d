"""Large data sets are prepared with Ray Data, which sends one shard's worth of images to each worker to write."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console

from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import configure_ray_data, session

Execute = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def executor(address: str | None, console: Console, *, verbose: bool = False) -> Execute:
    """Return a function that maps over tasks, for `prepare`, in a Ray session of its own and with progress."""

    def execute(write: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        with session(address, verbose=verbose) as cluster, bar(console, "prepare", len(tasks), "shards") as shown:
            for receipt in map_tasks(write, tasks, cluster.worker_options):
                shown.advance(1)
                yield receipt

    return execute


def map_tasks(write: Callable[[Any], Any], tasks: Sequence[Any], resources: dict[str, float]) -> Iterator[Any]:
    """Yield write(task) for each task, in any order, through Ray Data. Errors of this package are raised unchanged."""
    import ray
    import ray.data
    import ray.exceptions

    from mucs_ray.engine.coordinator import last_line, mucs_error_in
    from mucs_ray.errors import RunFailed

    configure_ray_data()
    numbers = ray.data.from_items(list(range(len(tasks))), override_num_blocks=len(tasks))
    shared = ray.put(list(tasks))

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return {"receipt": [write(ray.get(shared)[row["item"]])]}

    try:
        for row in numbers.map(run, num_cpus=resources["num_cpus"]).iter_rows():
            yield row["receipt"][0]
    except ray.exceptions.RayError as error:
        raise mucs_error_in(error) or RunFailed(f"preparing failed: {last_line(error)}") from error
