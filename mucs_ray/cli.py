"""The command line. Works like make: a command does what is needed and missing, and skips what is done.

Neither torch nor ray is imported before a command needs it, so `--help` is quick.
Exit codes: 0 done, 1 failed (the run directory is consistent, run again), 2 bad input, 3 the machine, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mucs_ray import __version__
from mucs_ray.errors import MucsError

if TYPE_CHECKING:
    from mucs_ray.evaluation.analysis import Analysis
    from mucs_ray.pipeline import Pipeline
    from mucs_ray.store.run import State

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take "[default: ...]" for markup
    help="Which training images made this generated image? Training data attribution for diffusion models, on Ray.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare and look at training sets.")
app.add_typer(data_app, name="data")

DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="A prepared data set: a recipe's name (emoji, cifar10, ...) or its URL.")
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="A recipe's name or a TOML file.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Run directory, any fsspec URL [default: runs/RECIPE].")]
DemoRunOption = Annotated[str | None, typer.Option("--run", help="Run directory, any fsspec URL [default: runs/demo].")]
CheckRunOption = Annotated[
    str | None, typer.Option("--run", help="A run directory that every node should share, any fsspec URL.")
]
CheckDatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="URL of a prepared data set that every node should read.")
]
WeightsOption = Annotated[str | None, typer.Option("--weights", help="Attribute with these weights; do not train.")]
ItemsOption = Annotated[int | None, typer.Option("--items", help="Generated images to attribute.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Names every random number of the run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A recipe value, e.g. --set score.noises=50.")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Once or more, or a,b; see `mucs-ray methods` [default: mucs].")
]
SeedsOption = Annotated[
    str | None, typer.Option("--seeds", help="Several runs side by side, e.g. 1..6 or 1,2,5, in RUN/seed-N.")
]
WeightsDirOption = Annotated[
    str | None,
    typer.Option("--weights-dir", help="Folder with weights of similarity metrics [default: MUCS_RAY_WEIGHTS]."),
]
ForOption = Annotated[
    Literal["attribute", "run"], typer.Option("--for", help="The command that is planned; run: with retrainings.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="GPUs, or CPUs without any [default: those of this machine].")
]
PriceOption = Annotated[
    float | None, typer.Option("--price", help="Of one GPU for an hour, or of one CPU without any, in your currency.")
]
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


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the commands that run a pipeline have in common."""

    dataset: str | None = None
    recipe: str | None = None
    run: str | None = None
    weights: str | None = None
    items: int | None = None
    seed: int | None = None
    settings: Sequence[str] = ()
    methods: Sequence[str] | None = None
    weights_dir: str | None = None
    address: str | None = None
    verbose: bool = False


def open_pipeline(speaking: Terminal, options: Options, *, seeds: Sequence[int] | None = None) -> "list[Pipeline]":
    """Recipe, data set and run directory out of a command's options: one run, or one a seed."""
    from mucs_ray.experiment import check_owner, folder
    from mucs_ray.pipeline import Pipeline
    from mucs_ray.resolve import method_names, resolve

    given = {"generate.items": options.items, "seed": options.seed}
    told = [f"{key}={value}" for key, value in given.items() if value is not None]
    methods = method_names(options.methods)
    recipe, data = resolve(
        dataset=options.dataset,
        recipe=options.recipe,
        weights=options.weights,
        settings=[*told, *options.settings],
        console=speaking.console,
    )
    url = options.run or f"runs/{recipe.name}"
    check_owner(url, several=seeds is not None)
    runs = [(recipe, url)] if seeds is None else [(replace(recipe, seed=n), f"{url}/{folder(n)}") for n in seeds]
    return [
        Pipeline.open(
            each,
            data,
            where,
            console=speaking.console,
            methods=methods,
            weights_dir=options.weights_dir,
            address=options.address,
            verbose=options.verbose,
        )
        for each, where in runs
    ]


def work(command: str, speaking: Terminal, pipeline: "Pipeline") -> None:
    """Print the plan, do what is missing, tell the result."""
    plan = pipeline.plan(command)
    show_plan(speaking.console, pipeline, plan)
    if command == "evaluate":
        tell_left_out(speaking.console, pipeline)
    from mucs_ray import driver

    done = [name for _, name in driver.run([pipeline], command)]
    if not done:
        speaking.console.print("nothing to do")
    document: dict[str, Any] = {
        "run": pipeline.run_url,
        "done_now": done,
        "skipped": [name for name in plan if name not in done],
    }
    if "report" in plan:
        from mucs_ray import comparison, summary

        analysis = comparison.analysis_of([pipeline])
        document |= summary.as_json(pipeline, analysis) | {"report": f"{pipeline.run_url}/report.html"}
        show_answer(speaking.console, document, analysis)
    speaking.result(document)


def work_on_seeds(speaking: Terminal, options: Options, seeds: Sequence[int]) -> None:
    """The counterfactual test over several seeds."""
    from mucs_ray.experiment import Experiment

    pipelines = open_pipeline(speaking, options, seeds=seeds)
    url = pipelines[0].run_url.rpartition("/")[0]
    experiment = Experiment(run_url=url, pipelines=tuple(pipelines))
    for pipeline in pipelines:
        show_plan(speaking.console, pipeline, pipeline.plan("evaluate"))
    tell_left_out(speaking.console, pipelines[0])
    done = experiment.run()
    if not done:
        speaking.console.print("nothing to do")
    analysis = experiment.analysis
    document = {**experiment.as_json(analysis), "done_now": done, "report": f"{experiment.run_url}/report.html"}
    show_answer(speaking.console, document, analysis)
    speaking.result(document)


def tell_left_out(console: Console, pipeline: "Pipeline") -> None:
    """One line on the metrics that cannot be measured here."""
    from mucs_ray.comparison import left_out

    for line in left_out([pipeline]):
        console.print(f"[yellow]{escape(line)}[/]", highlight=False, soft_wrap=True)


def show_plan(console: Console, pipeline: "Pipeline", plan: "Mapping[str, State]") -> None:
    """One line a stage: where it stands and why."""
    console.print(
        f"[bold]{escape(pipeline.recipe.name)}[/]  {escape(pipeline.run_url)}", highlight=False, soft_wrap=True
    )
    width = max(len(name) for name in plan)
    for name, state in plan.items():
        colour = "green" if state.status == "done" else "yellow"
        reason = "" if state.status == "done" else escape(state.reason)
        line = f"  {name:<{width}} [{colour}]{state.status:<8}[/] [dim]{reason}[/]"
        console.print(line, highlight=False, soft_wrap=True)


def show_answer(console: Console, document: dict[str, Any], analysis: "Analysis | None") -> None:
    """The first places of each item, the verdict of the counterfactual test, and where the rest is."""
    from mucs_ray.comparison import sentence, without_variants

    attributions = document.get("attributions", {})
    for method in without_variants(list(attributions)):
        found = attributions[method]
        table = Table("item", "test idx", f"most influential training images by {method}: idx (score)", box=None)
        for item in found["items"]:
            first = "  ".join(f"{idx} ({score:.3f})" for idx, score in item["top"][:4])
            table.add_row(str(item["item"]), str(item["idx"]), first)
        console.print(table)
        for name in ("scores", "topk"):
            console.print(f"{name:<7} {found[name]}", highlight=False, soft_wrap=True)
    if analysis is not None:
        console.print(auc_table(analysis))
        console.print(sentence(analysis), highlight=False, soft_wrap=True)
    console.print(f"{'report':<7} {document['report']}", highlight=False, soft_wrap=True)


def auc_table(analysis: "Analysis") -> Table:
    """AUC against random removal by method and metric; .5 = no effect, 1 = total separation."""
    table = Table("AUC", "removed", *analysis.metrics, box=None)
    for method in analysis.methods:
        values = [f"{method.metrics[metric].auc:.3f}" for metric in analysis.metrics]
        table.add_row(method.method, f"{method.removed_share:.1%}", *values)
    return table


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Which training images made this generated image? Training data attribution for diffusion models, on Ray."""
    if version:
        print(f"mucs-ray {__version__}")
        raise typer.Exit(0)


@app.command()
def demo(
    run: DemoRunOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    weights_dir: WeightsDirOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Everything on the embedded emoji, in minutes on a laptop: train, generate, attribute, and test the answer."""
    with terminal(as_json=as_json) as speaking:
        options = Options(
            dataset="emoji",
            run=run or "runs/demo",
            seed=seed,
            settings=settings or (),
            weights_dir=weights_dir,
            verbose=verbose,
        )
        work("evaluate", speaking, *open_pipeline(speaking, options))


def stage_command(name: str, summary: str) -> None:
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
        method: MethodOption = None,
        weights_dir: WeightsDirOption = None,
        address: AddressOption = None,
        as_json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        with terminal(as_json=as_json) as speaking:
            options = Options(
                dataset=dataset,
                recipe=recipe,
                run=run,
                weights=weights,
                items=items,
                seed=seed,
                settings=settings or (),
                methods=method,
                weights_dir=weights_dir,
                address=address,
                verbose=verbose,
            )
            work(name, speaking, *open_pipeline(speaking, options))


stage_command("pretrain", "Train the diffusion model through Ray Train (or take --weights).")
stage_command("generate", "Generate the items, after pretraining if that is missing.")
stage_command("attribute", "The main job: attribute generated items to the training set, with a report.")
stage_command("retrain", "Train again without the images each method names, and once without random ones.")
stage_command("regenerate", "Generate the same items again from the retrained networks.")
stage_command("evaluate", "Compare them with the first ones: did removing those images change them more than random?")
stage_command("report", "Write report.html, after whatever an attribution is missing.")


@app.command("run")
def run_everything(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    items: ItemsOption = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    method: MethodOption = None,
    weights_dir: WeightsDirOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """The whole protocol, for any methods and seeds: train, attribute, retrain, regenerate, evaluate, report."""
    with terminal(as_json=as_json) as speaking:
        options = Options(
            dataset=dataset,
            recipe=recipe,
            run=run,
            items=items,
            settings=settings or (),
            methods=method,
            weights_dir=weights_dir,
            address=address,
            verbose=verbose,
        )
        if seeds is None:
            work("evaluate", speaking, *open_pipeline(speaking, options))
            return
        from mucs_ray.experiment import parse_seeds

        work_on_seeds(speaking, options, parse_seeds(seeds))


@app.command()
def plan(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    weights: WeightsOption = None,
    items: ItemsOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    method: MethodOption = None,
    weights_dir: WeightsDirOption = None,
    command: ForOption = "attribute",
    workers: WorkersOption = None,
    price: PriceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What `attribute` or `run` would do now: stages, forwards, FLOP, bytes, and time and money as measured.

    For a few seconds on this machine, or in the run itself, once it has streamed for a minute.
    """
    with terminal(as_json=as_json) as speaking:
        options = Options(
            dataset=dataset,
            recipe=recipe,
            run=run,
            weights=weights,
            items=items,
            seed=seed,
            settings=settings or (),
            methods=method,
            weights_dir=weights_dir,
        )
        (pipeline,) = open_pipeline(speaking, options)
        from mucs_ray.estimate import estimate

        planned = "evaluate" if command == "run" else command
        estimated = estimate(pipeline, planned, workers=workers, price=price)
        show_plan(speaking.console, pipeline, pipeline.plan(planned))
        # on a narrow screen the words take more lines
        words = [Column(title, overflow="fold", min_width=8) for title in ("stage", "work")]
        numbers = [Column(title, justify="right", no_wrap=True) for title in estimated.titles()]
        table = Table(*words, *numbers, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for each in (*estimated.stages, estimated.total):
            table.add_row(each.stage.removeprefix("attribute/"), each.work, *each.cells())
        speaking.console.print(table)
        speaking.console.print(estimated.basis, highlight=False, soft_wrap=True)
        speaking.result(estimated.to_dict())


@app.command()
def status(run: Annotated[str, typer.Option("--run", help="Run directory.")], as_json: JsonOption = False) -> None:
    """Where a run stands, or the runs of several seeds, read off its directory; needs no Ray."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.experiment import is_experiment, reopen_experiment
        from mucs_ray.pipeline import reopen

        several = is_experiment(run)
        console = speaking.console
        runs = reopen_experiment(run, console=console).pipelines if several else [reopen(run, console=console)]
        told = []
        for pipeline in runs:
            command = "evaluate" if several else pipeline.furthest()
            plan = pipeline.plan(command)
            show_plan(console, pipeline, plan)
            states = {name: asdict(state) for name, state in plan.items()}
            told.append({"run": pipeline.run_url, "stages": states})
        speaking.result({"run": run, "seeds": told} if several else told[0])


@app.command()
def doctor(
    run: CheckRunOption = None,
    dataset: CheckDatasetOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check this machine, and every node of a cluster: packages, processors, memory, Ray, folders, optional weights."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.doctor import check

        findings = check(run, address=address, dataset=dataset, verbose=verbose)
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
    """The attribution methods, each with its variants, and the ensembles."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.attribution.registry import known

        for method in known().values():
            told = f"[bold]{escape(method.name)}[/]  [cyan]{method.cost_class}[/]  {escape(method.summary)}"
            settings = ", ".join(f"{key}={value}" for key, value in {**method.settings, **method.weights}.items())
            more = f"needs {method.needs}; costs {method.cost}; {method.source}"
            told += f"  [dim]{escape(settings)}[/]" if "/" in method.name else f"\n    [dim]{escape(more)}[/]"
            speaking.console.print(told, highlight=False, soft_wrap=True)
        speaking.result({"methods": [method.facts() for method in known().values()]})


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="emoji, cifar10, artbench10, coco, folder or parquet.")],
    source: Annotated[str | None, typer.Option("--source", help="Where the original files are.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="URL to write to [default: data/NAME].")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Shorter side in pixels.")] = None,
    rows_per_unit: Annotated[
        int | None, typer.Option("--rows-per-unit", min=1, help="Images in a unit of work [default: 256].")
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a training set in the canonical form: Parquet shards and a card."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.resolve import prepare_data

        prepared = prepare_data(
            name,
            source,
            out or f"data/{name}",
            size,
            rows_per_unit=rows_per_unit,
            console=speaking.console,
            address=address,
            verbose=verbose,
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
