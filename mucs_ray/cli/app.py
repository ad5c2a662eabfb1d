"""The command line. Works like make: a command does what is needed and missing, and skips what is done.

Neither torch nor ray is imported before a command needs it, so `--help` is quick.
Exit codes: 0 done, 1 failed (the run directory is consistent, run again), 2 bad input, 3 the machine, 130 interrupted.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mucs_ray import __version__
from mucs_ray.cli.data import data_app
from mucs_ray.cli.options import (
    AddressOption,
    CheckDatasetOption,
    CheckRunOption,
    DatasetOption,
    DemoRunOption,
    ForOption,
    ItemsOption,
    JsonOption,
    MethodOption,
    Options,
    PriceOption,
    RecipeOption,
    RunOption,
    SeedOption,
    SeedsOption,
    SetOption,
    VerboseOption,
    WeightsDirOption,
    WeightsOption,
    WorkersOption,
)
from mucs_ray.cli.terminal import Terminal, print_left_out, show_answer, show_estimate, show_plan, terminal

if TYPE_CHECKING:
    from mucs_ray.pipeline.graph import Pipeline

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take "[default: ...]" for markup
    help="Which training images made this generated image? Training data attribution for diffusion models, on Ray.",
)
app.add_typer(data_app, name="data")


def open_pipeline(speaking: Terminal, options: Options, *, seeds: Sequence[int] | None = None) -> "list[Pipeline]":
    """Recipe, data set and run directory out of a command's options: one run, or one a seed."""
    from mucs_ray.pipeline.graph import Pipeline
    from mucs_ray.run.resolve import method_names, resolve
    from mucs_ray.run.seeds import check_owner, folder

    given = {"generate.items": options.items, "seed": options.seed}
    told = [f"{key}={value}" for key, value in given.items() if value is not None]
    methods = method_names(options.methods)
    recipe, data = resolve(
        dataset=options.dataset,
        recipe=options.recipe,
        weights=options.weights,
        settings=[*told, *options.settings],
        methods=methods,
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
        print_left_out(speaking.console, pipeline)
    from mucs_ray.run import driver

    done = [name for _, name in driver.run([pipeline], command)]
    if not done:
        speaking.console.print("nothing to do")
    document: dict[str, Any] = {
        "run": pipeline.run_url,
        "done_now": done,
        "skipped": [name for name in plan if name not in done],
    }
    if "report" in plan:
        from mucs_ray.results import counterfactual, report

        analysis = counterfactual.analysis_of([pipeline])
        document |= report.as_json(pipeline, analysis) | {"report": f"{pipeline.run_url}/report.html"}
        show_answer(speaking.console, document, analysis)
    speaking.result(document)


def work_on_seeds(speaking: Terminal, options: Options, seeds: Sequence[int]) -> None:
    """The counterfactual test over several seeds."""
    from mucs_ray.run.experiment import Experiment

    pipelines = open_pipeline(speaking, options, seeds=seeds)
    url = pipelines[0].run_url.rpartition("/")[0]
    experiment = Experiment(run_url=url, pipelines=tuple(pipelines))
    for pipeline in pipelines:
        show_plan(speaking.console, pipeline, pipeline.plan("evaluate"))
    print_left_out(speaking.console, pipelines[0])
    done = experiment.run()
    if not done:
        speaking.console.print("nothing to do")
    analysis = experiment.analysis
    document = {**experiment.as_json(analysis), "done_now": done, "report": f"{experiment.run_url}/report.html"}
    show_answer(speaking.console, document, analysis)
    speaking.result(document)


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
        from mucs_ray.run.seeds import parse_seeds

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
        from mucs_ray.planning.cost import estimate

        planned = "evaluate" if command == "run" else command
        estimated = estimate(pipeline, planned, workers=workers, price=price)
        show_plan(speaking.console, pipeline, pipeline.plan(planned))
        show_estimate(speaking.console, estimated)
        speaking.result(estimated.to_dict())


@app.command()
def status(run: Annotated[str, typer.Option("--run", help="Run directory.")], as_json: JsonOption = False) -> None:
    """Where a run stands, or the runs of several seeds, read off its directory; needs no Ray."""
    with terminal(as_json=as_json) as speaking:
        from mucs_ray.pipeline.graph import reopen
        from mucs_ray.run.seeds import is_experiment, reopen_seeds

        several = is_experiment(run)
        console = speaking.console
        runs = reopen_seeds(run, console=console) if several else [reopen(run, console=console)]
        told = []
        for pipeline in runs:
            command = "evaluate" if several else pipeline.last_command()
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
        from mucs_ray.attribution.registry import all_methods

        for method in all_methods().values():
            told = f"[bold]{escape(method.name)}[/]  [cyan]{method.cost_class}[/]  {escape(method.summary)}"
            settings = ", ".join(f"{key}={value}" for key, value in (method.weights or method.settings).items())
            more = f"needs {method.needs}; costs {method.cost}; {method.source}"
            told += f"\n    [dim]{escape('; '.join(filter(None, (settings, more))))}[/]"
            speaking.console.print(told, highlight=False, soft_wrap=True)
        speaking.result({"methods": [method.facts() for method in all_methods().values()]})


def main() -> None:
    """Console script."""
    app()
