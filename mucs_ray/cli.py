"""The command line. Works like make: a command does what is needed and missing, and skips what is done.

Neither torch nor ray is imported before a command needs it, so `--help` is quick.
Exit codes: 0 done, 1 failed (the run directory is consistent, run again), 2 bad input, 3 the machine, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mucs_ray import __version__
from mucs_ray.errors import InputError, MucsError

if TYPE_CHECKING:
    from mucs_ray.pipeline import Pipeline

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which training images made this generated image? Training data attribution for diffusion models, on Ray.",
)
data_app = typer.Typer(no_args_is_help=True, help="Prepare and look at training sets.")
app.add_typer(data_app, name="data")

DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="A prepared data set: a recipe's name (emoji, cifar10, ...) or its URL.")
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="A recipe's name or a TOML file.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Run directory, any fsspec URL [default: runs/RECIPE].")]
WeightsOption = Annotated[str | None, typer.Option("--weights", help="Attribute with these weights; do not train.")]
ItemsOption = Annotated[int | None, typer.Option("--items", help="Generated images to attribute.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Names every random number of the run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A recipe value, e.g. --set score.noises=50.")]
MethodOption = Annotated[str, typer.Option("--method", help="See `mucs-ray methods`.")]
AddressOption = Annotated[str | None, typer.Option("--address", help="A Ray cluster [default: RAY_ADDRESS, or local].")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Show Ray's own output too.")]


class Terminal:
    """Where a command speaks: people on stdout (stderr with --json), results on stdout.

    Ray prints stray lines to sys.stdout, so that is pointed at stderr for the whole command.
    """

    def __init__(self, *, as_json: bool) -> None:
        """Takes over sys.stdout."""
        self.out: TextIO = sys.stdout
        sys.stdout = sys.stderr
        self.as_json = as_json
        self.console = Console(file=sys.stderr if as_json else self.out)

    def result(self, document: dict[str, Any]) -> None:
        """The machine-readable answer."""
        if self.as_json:
            print(json.dumps(document), file=self.out, flush=True)


@contextmanager
def terminal(*, as_json: bool = False) -> Iterator[Terminal]:
    """A command's frame: our own errors become one line and an exit code."""
    speaking = Terminal(as_json=as_json)
    try:
        yield speaking
    except MucsError as error:
        Console(file=sys.stderr).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        told = escape(" ".join(str(error).splitlines()) or type(error).__name__)
        Console(file=sys.stderr).print(f"[red]error:[/] {told}", highlight=False, soft_wrap=True)
        raise typer.Exit(3) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        sys.stdout = speaking.out


def open_pipeline(
    speaking: Terminal,
    *,
    dataset: str | None,
    recipe: str | None = None,
    run: str | None = None,
    weights: str | None = None,
    items: int | None = None,
    seed: int | None = None,
    settings: list[str] | None = None,
    address: str | None = None,
    verbose: bool = False,
) -> "Pipeline":
    """Recipe, data set and run directory out of a command's options."""
    from mucs_ray.pipeline import Pipeline
    from mucs_ray.resolve import resolve

    told = [f"{key}={value}" for key, value in (("generate.items", items), ("seed", seed)) if value is not None]
    chosen, data = resolve(
        dataset=dataset, recipe=recipe, weights=weights, settings=[*told, *(settings or [])], console=speaking.console
    )
    url = run or f"runs/{chosen.name}"
    return Pipeline.open(chosen, data, url, console=speaking.console, address=address, verbose=verbose)


def work(target: str, speaking: Terminal, pipeline: "Pipeline") -> None:
    """Print the plan, do what is missing, tell the result."""
    plan = pipeline.plan(target)
    show_plan(speaking.console, pipeline, target)
    from mucs_ray import driver

    done = driver.run(pipeline, target)
    if not done:
        speaking.console.print("nothing to do")
    document: dict[str, Any] = {
        "run": pipeline.run_url,
        "done_now": done,
        "skipped": [s for s in plan if s not in done],
    }
    if target == "report":
        from mucs_ray import summary

        document |= summary.as_json(pipeline) | {"report": f"{pipeline.run_url}/report.html"}
        show_answer(speaking.console, document)
    speaking.result(document)


def show_plan(console: Console, pipeline: "Pipeline", target: str) -> None:
    """One line a stage: where it stands and why."""
    console.print(
        f"[bold]{escape(pipeline.recipe.name)}[/]  {escape(pipeline.run_url)}", highlight=False, soft_wrap=True
    )
    for short, state in pipeline.plan(target).items():
        colour = "green" if state.status == "done" else "yellow"
        reason = "" if state.status == "done" else escape(state.reason)
        console.print(f"  {short:<10} [{colour}]{state.status:<8}[/] [dim]{reason}[/]", highlight=False, soft_wrap=True)


def show_answer(console: Console, document: dict[str, Any]) -> None:
    """The first places of each item, and where the rest is."""
    table = Table("item", "test idx", "most influential training images: idx (score)", box=None)
    for item in document["items"]:
        first = "  ".join(f"{idx} ({score:.3f})" for idx, score in item["top"][:4])
        table.add_row(str(item["item"]), str(item["idx"]), first)
    console.print(table)
    for name in ("scores", "topk", "report"):
        console.print(f"{name:<7} {document[name]}", highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Which training images made this generated image? Training data attribution for diffusion models, on Ray."""
    if version:
        print(f"mucs-ray {__version__}")
        raise typer.Exit(0)


@app.command()
def demo(
    run: RunOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """The whole main job on the embedded emoji, in minutes on a laptop; ends with a report to open in a browser."""
    with terminal(as_json=as_json) as speaking:
        url = run or "runs/demo"
        pipeline = open_pipeline(speaking, dataset="emoji", run=url, seed=seed, settings=settings, verbose=verbose)
        work("report", speaking, pipeline)


def stage_command(name: str, target: str, summary: str) -> None:
    """Add a command that runs the pipeline up to a stage; all of these take the same options."""

    @app.command(name, help=summary)
    def command(
        dataset: DatasetOption = None,
        recipe: RecipeOption = None,
        run: RunOption = None,
        weights: WeightsOption = None,
        items: ItemsOption = None,
        seed: SeedOption = None,
        settings: SetOption = None,
        method: MethodOption = "mucs",
        address: AddressOption = None,
        as_json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        with terminal(as_json=as_json) as speaking:
            check_method(method)
            pipeline = open_pipeline(
                speaking,
                dataset=dataset,
                recipe=recipe,
                run=run,
                weights=weights,
                items=items,
                seed=seed,
                settings=settings,
                address=address,
                verbose=verbose,
            )
            work(target, speaking, pipeline)


stage_command("pretrain", "pretrain", "Train the diffusion model through Ray Train (or take --weights).")
stage_command("generate", "generate", "Generate the items, after pretraining if that is missing.")
stage_command("attribute", "report", "The main job: attribute generated items to the training set, with a report.")
stage_command("report", "report", "Write report.html, after whatever is missing.")


def check_method(method: str) -> None:
    """InputError for a method that there is not."""
    from mucs_ray.attribution.registry import METHODS

    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; known: {', '.join(METHODS)}")


@app.command()
def plan(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    weights: WeightsOption = None,
    items: ItemsOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What `attribute` would do now: stages, forwards, FLOP, bytes, and time by a short measurement on this machine."""
    with terminal(as_json=as_json) as speaking:
        pipeline = open_pipeline(
            speaking,
            dataset=dataset,
            recipe=recipe,
            run=run,
            weights=weights,
            items=items,
            seed=seed,
            settings=settings,
        )
        from mucs_ray.estimate import estimate

        estimated = estimate(pipeline)
        show_plan(speaking.console, pipeline, "report")
        table = Table("stage", "work", "forwards", "FLOP", "written", "time here", box=None)
        for each in estimated.stages:
            table.add_row(*each.cells())
        speaking.console.print(table)
        speaking.console.print(estimated.basis, highlight=False, soft_wrap=True)
        speaking.result(estimated.to_dict())


@app.command()
def status(run: Annotated[str, typer.Option("--run", help="Run directory.")], as_json: JsonOption = False) -> None:
    """Where a run stands, read off its directory; needs no Ray."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.pipeline import reopen

        pipeline = reopen(run, console=speaking.console)
        show_plan(speaking.console, pipeline, "report")
        states = {short: asdict(state) for short, state in pipeline.plan("report").items()}
        speaking.result({"run": pipeline.run_url, "stages": states})


@app.command()
def doctor(run: RunOption = None, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Check this machine: packages, processors, memory, Ray, folders, optional weights."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.doctor import check

        findings = check(run, verbose=verbose)
        for finding in findings:
            mark = (
                "[green]ok[/]     " if finding.ok else ("[yellow]missing[/]" if finding.optional else "[red]bad[/]    ")
            )
            text = f"{mark} {finding.name:<12} {escape(finding.found)}"
            speaking.console.print(text, highlight=False, soft_wrap=True)
        speaking.result({"findings": [asdict(finding) for finding in findings]})
        if not all(finding.ok or finding.optional for finding in findings):
            raise typer.Exit(3)


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """The attribution methods."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.attribution.registry import METHODS

        table = Table("method", "what it does", "needs", "cost", "source", box=None)
        for method in METHODS.values():
            table.add_row(method.name, method.summary, method.needs, method.cost, method.source)
        speaking.console.print(table)
        speaking.result({"methods": [asdict(method) for method in METHODS.values()]})


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="emoji, cifar10, artbench10, coco, folder or parquet.")],
    source: Annotated[str | None, typer.Option("--source", help="Where the original files are.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="URL to write to [default: data/NAME].")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Shorter side in pixels.")] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a training set in the canonical form: Parquet shards and a card."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.resolve import prepare_data

        prepared = prepare_data(
            name, source, out or f"data/{name}", size, console=speaking.console, address=address, verbose=verbose
        )
        card = prepared.card
        counts = {split: card.num_images(split) for split in ("train", "test")}
        speaking.console.print(
            f"{prepared.url}: {counts['train']:,} train, {counts['test']:,} test images of {card.size} px,"
            f" condition {card.condition} {card.condition_dim or ''}, {card.num_rejected} rejected",
            highlight=False,
            soft_wrap=True,
        )
        speaking.result({"url": prepared.url, "counts": counts, "rejected": card.num_rejected, "size": card.size})


def main() -> None:
    """Console script."""
    app()


if __name__ == "__main__":
    main()
