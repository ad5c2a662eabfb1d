"""What a user asks for, on the command line or in Python, and the runs that this opens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mucs_ray.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mucs_ray.data.queries import Query
    from mucs_ray.pipeline.graph import Pipeline


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options that the commands on a run have in common, as README explains them; None where one is not given."""

    dataset: str | None = None
    recipe: str | None = None
    run: str | None = None
    weights: str | None = None
    items: int | None = None
    seed: int | None = None
    settings: Sequence[str] = ()
    """Values of the recipe, each as "section.key=value"."""
    methods: Sequence[str] | None = None
    images: Sequence[str] = ()
    queries: str | None = None
    label: str | None = None
    prompt: str | None = None
    weights_dir: str | None = None
    address: str | None = None
    verbose: bool = False


def open_runs(
    request: Request, console: "Console", *, seeds: Sequence[int] | None = None, continues: bool = False
) -> "list[Pipeline]":
    """Open the run that is asked for, or one run for each of several seeds. InputError, in one line, for bad input.

    `continues` says that the run directory's own recipe and data set are wanted, as queries always do.
    """
    from mucs_ray.pipeline.graph import Pipeline
    from mucs_ray.run.resolve import default_run, method_names, resolve
    from mucs_ray.run.seeds import check_owner, folder

    settings = {"generate.items": request.items, "seed": request.seed}
    given = [f"{key}={value}" for key, value in settings.items() if value is not None]
    methods, queries = method_names(request.methods), named_queries(request, console)
    own = queries or continues  # the run directory has a recipe, which is meant
    where = request.run or (default_run(request.dataset, request.recipe) if own else None)
    begun = where or (None if request.recipe else default_run(request.dataset, request.recipe))
    recipe, data = resolve(
        dataset=request.dataset,
        recipe=request.recipe,
        weights=request.weights,
        settings=[*given, *request.settings],
        methods=methods,
        console=console,
        run=where if own else None,
        begun=begun if begun is None or seeds is None else f"{begun}/{folder(seeds[0])}",
        address=request.address,
    )
    url = where or f"runs/{recipe.name}"
    check_owner(url, several=seeds is not None)
    runs = [(recipe, url)] if seeds is None else [(replace(recipe, seed=n), f"{url}/{folder(n)}") for n in seeds]
    return [
        Pipeline.open(
            recipe_of_run,
            data,
            run_url,
            console=console,
            methods=methods,
            weights_dir=request.weights_dir,
            address=request.address,
            verbose=request.verbose,
            queries=queries,
        )
        for recipe_of_run, run_url in runs
    ]


def named_queries(request: Request, console: "Console") -> "tuple[Query, ...]":
    """Return the pictures to explain that are named, if any. InputError if they do not go with the other options."""
    from rich.markup import escape

    from mucs_ray.data.queries import find_queries

    given = (*request.images, request.queries, request.label, request.prompt)
    if not any(value is not None for value in given):
        return ()
    counts = [setting for setting in request.settings if setting.startswith(("generate.items", "generate.controls"))]
    if request.items is not None or counts:
        raise InputError("--items counts generated images, and --image or --queries name pictures; give one of them")

    def tell(line: str) -> None:
        console.print(escape(line), highlight=False, soft_wrap=True)

    return find_queries(request.images, request.queries, label=request.label, prompt=request.prompt, tell=tell)
