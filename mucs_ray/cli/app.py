"""The command line. It works like make: a command runs the stages that it needs and that are missing.

Neither torch nor ray is imported before a command needs it, so that `--help` is quick.
Exit codes: 0 done, 1 failed (the run directory is consistent, run again), 2 bad input, 3 the machine, 130 interrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mucs_ray import __version__
from mucs_ray.cli.data import data_app
from mucs_ray.cli.model import model_app
from mucs_ray.cli.options import (
    AddressOption,
    ByOption,
    CheckDatasetOption,
    CheckRunOption,
    DatasetOption,
    DemoRunOption,
    ForOption,
    FullOption,
    ImageOption,
    ItemsOption,
    JsonOption,
    LabelOption,
    MethodOption,
    PriceOption,
    PromptOption,
    QueriesOption,
    RecipeOption,
    RunByOption,
    RunOption,
    SeedOption,
    SeedsOption,
    SetOption,
    VerboseOption,
    WeightsDirOption,
    WeightsOption,
    WorkersOption,
)
from mucs_ray.cli.terminal import Terminal, print_left_out, show_answer, show_estimate, show_groups, show_plan, terminal
from mucs_ray.errors import InputError
from mucs_ray.run.request import Request

if TYPE_CHECKING:
    from mucs_ray.pipeline.graph import Pipeline
    from mucs_ray.store.run import State

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take "[default: ...]" for markup
    help="Which training images made this generated image? Training data attribution for diffusion models, on Ray.",
)
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")


def open_pipeline(
    output: Terminal, options: Request, *, seeds: Sequence[int] | None = None, continues: bool = False
) -> "list[Pipeline]":
    """Open the run that a command's options describe, or one run for each of several seeds.

    `continues` says that the recipe and the data set of a run directory that is there are meant.
    """
    from mucs_ray.run.request import open_runs

    return open_runs(options, output.console, seeds=seeds, continues=continues)


def print_plan(output: Terminal, pipeline: "Pipeline", plan: "Mapping[str, State]") -> None:
    """Print the state of each stage of a run."""
    show_plan(output.console, plan, title=pipeline.recipe.name, run_url=pipeline.run_url)


def work(command: str, output: Terminal, pipeline: "Pipeline") -> None:
    """Run a command, and print the result."""
    output.result(run_command(command, output, pipeline))


def run_command(command: str, output: Terminal, pipeline: "Pipeline") -> dict[str, Any]:
    """Print the plan of a command, run its missing stages, show the result, and return it as JSON values."""
    plan = pipeline.plan(command)
    print_plan(output, pipeline, plan)
    if command == "lds" or (command == "evaluate" and pipeline.regeneration != "none"):
        print_left_out(output.console, pipeline.similarities[1])
    from mucs_ray.planning.cost import long_training
    from mucs_ray.run import driver

    if line := long_training(pipeline, plan):
        output.console.print(f"[yellow]{escape(line)}[/]", highlight=False, soft_wrap=True)
    done = [name for _, name in driver.run([pipeline], command)]
    if not done:
        output.console.print("nothing to do")
    document: dict[str, Any] = {
        "run": pipeline.run_url,
        "done_now": done,
        "skipped": [name for name in plan if name not in done],
    }
    if command == "groups":
        from mucs_ray.results import groups as group_results

        document |= group_results.as_json(pipeline) | {"report": f"{pipeline.run_url}/report.html"}
        show_groups(output.console, document)
    elif "report" in plan:
        from mucs_ray.results import counterfactual, lds, report

        analyses = counterfactual.analyses_of([pipeline])
        document |= report.as_json(pipeline, analyses) | {"report": f"{pipeline.run_url}/report.html"}
        show_answer(output.console, document, analyses, lds.finished(pipeline))
    return document


def run_then_groups(output: Terminal, pipeline: "Pipeline") -> None:
    """Run the whole protocol and then group attribution, and print both results as one."""
    pipeline.target_stages("groups")  # bad groups are told before anything is trained
    first, then = (run_command(command, output, pipeline) for command in ("evaluate", "groups"))
    done = dict.fromkeys([*first["done_now"], *then["done_now"]])
    skipped = dict.fromkeys(name for name in [*first["skipped"], *then["skipped"]] if name not in done)
    output.result({**first, **then, "done_now": list(done), "skipped": list(skipped)})


def work_on_seeds(output: Terminal, options: Request, seeds: Sequence[int], *, grouped: bool) -> None:
    """Run the counterfactual test over several seeds, and group attribution in each if asked; print the results."""
    from mucs_ray.run.experiment import Experiment

    pipelines = open_pipeline(output, options, seeds=seeds)
    for pipeline in pipelines if grouped else ():
        pipeline.target_stages("groups")
    url = pipelines[0].run_url.rpartition("/")[0]
    experiment = Experiment(run_url=url, pipelines=tuple(pipelines))
    for pipeline in pipelines:
        print_plan(output, pipeline, pipeline.plan("evaluate"))
    print_left_out(output.console, pipelines[0].similarities[1])
    done = experiment.run()
    if not done:
        output.console.print("nothing to do")
    analyses = experiment.analyses
    document = {**experiment.as_json(analyses), "done_now": done, "report": f"{experiment.run_url}/report.html"}
    show_answer(output.console, document, analyses)
    if grouped:
        document["groups_of_seeds"] = {
            str(pipeline.recipe.seed): run_command("groups", output, pipeline) for pipeline in pipelines
        }
    output.result(document)


def with_groups(settings: list[str] | None, by: str | None) -> list[str]:
    """Return the settings that are given, with that of --by."""
    return [*(settings or ()), *([f"groups.by={by}"] if by else ())]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Which training images made this generated image? Training data attribution for diffusion models, on Ray."""
    if version:
        print(f"mucs-ray {__version__}")
        raise typer.Exit(0)


@app.command()
def demo(
    run: DemoRunOption = None,
    full: FullOption = False,
    seed: SeedOption = None,
    settings: SetOption = None,
    weights_dir: WeightsDirOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Explain eight emoji that a small embedded model makes; with --full, train the model and test the answer too."""
    from mucs_ray.run.resolve import DEMO_WEIGHTS, EMBEDDED

    with terminal(as_json=as_json) as output:
        options = Request(
            dataset=EMBEDDED,
            run=run or ("runs/demo-full" if full else "runs/demo"),
            weights=None if full else DEMO_WEIGHTS,
            seed=seed,
            settings=settings or (),
            weights_dir=weights_dir,
            verbose=verbose,
        )
        work("evaluate" if full else "attribute", output, *open_pipeline(output, options))


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
        image: ImageOption = None,
        queries: QueriesOption = None,
        label: LabelOption = None,
        prompt: PromptOption = None,
        weights_dir: WeightsDirOption = None,
        address: AddressOption = None,
        as_json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        with terminal(as_json=as_json) as output:
            options = Request(
                dataset=dataset,
                recipe=recipe,
                run=run,
                weights=weights,
                items=items,
                seed=seed,
                settings=settings or (),
                methods=method,
                images=image or (),
                queries=queries,
                label=label,
                prompt=prompt,
                weights_dir=weights_dir,
                address=address,
                verbose=verbose,
            )
            work(name, output, *open_pipeline(output, options, continues=name == "lds" and recipe is None))


stage_command("pretrain", "Train the diffusion model through Ray Train (or take --weights).")
stage_command("generate", "Generate the items, after pretraining if that is missing.")
stage_command("attribute", "The main job: attribute generated items to the training set, with a report.")
stage_command("retrain", "Train again without the images each method names, and once without random ones.")
stage_command("regenerate", "Generate the same items again from the retrained networks.")
stage_command("evaluate", "Compare them with the first ones: did removing those images change them more than random?")
stage_command("lds", "Train on random halves of the images: how well does each method predict what that changes?")
stage_command("report", "Write report.html, after whatever an attribution is missing.")


@app.command()
def groups(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    by: ByOption = None,
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
    """Which group of training images (class, artist, ...) made each item, and what is the share of each?"""
    with terminal(as_json=as_json) as output:
        options = Request(
            dataset=dataset,
            recipe=recipe,
            run=run,
            weights=weights,
            items=items,
            seed=seed,
            settings=with_groups(settings, by),
            methods=method,
            weights_dir=weights_dir,
            address=address,
            verbose=verbose,
        )
        work("groups", output, *open_pipeline(output, options, continues=recipe is None))


@app.command("run")
def run_everything(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    items: ItemsOption = None,
    seeds: SeedsOption = None,
    by: RunByOption = None,
    settings: SetOption = None,
    method: MethodOption = None,
    image: ImageOption = None,
    queries: QueriesOption = None,
    label: LabelOption = None,
    prompt: PromptOption = None,
    weights_dir: WeightsDirOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the whole protocol, for any methods and seeds: train, attribute, retrain, regenerate, evaluate, report.

    With --by, groups of training images are scored after that, as `groups` does.
    """
    with terminal(as_json=as_json) as output:
        options = Request(
            dataset=dataset,
            recipe=recipe,
            run=run,
            items=items,
            settings=with_groups(settings, by),
            methods=method,
            images=image or (),
            queries=queries,
            label=label,
            prompt=prompt,
            weights_dir=weights_dir,
            address=address,
            verbose=verbose,
        )
        if seeds is None:
            (pipeline,) = open_pipeline(output, options)
            if by is None:
                work("evaluate", output, pipeline)
            else:
                run_then_groups(output, pipeline)
            return
        from mucs_ray.run.seeds import parse_seeds

        if image or queries:
            raise InputError("--seeds: pictures are explained by the model of one run; name one run, RUN/seed-N")

        work_on_seeds(output, options, parse_seeds(seeds), grouped=by is not None)


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
    image: ImageOption = None,
    queries: QueriesOption = None,
    label: LabelOption = None,
    prompt: PromptOption = None,
    weights_dir: WeightsDirOption = None,
    by: ByOption = None,
    command: ForOption = "attribute",
    workers: WorkersOption = None,
    price: PriceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `attribute`, or the command of --for, would do now: stages, forwards, FLOP, bytes, time and money.

    The speed is measured on this machine in a few seconds, or by the run itself, once it has streamed for a minute.
    """
    with terminal(as_json=as_json) as output:
        options = Request(
            dataset=dataset,
            recipe=recipe,
            run=run,
            weights=weights,
            items=items,
            seed=seed,
            settings=with_groups(settings, by),
            methods=method,
            images=image or (),
            queries=queries,
            label=label,
            prompt=prompt,
            weights_dir=weights_dir,
        )
        (pipeline,) = open_pipeline(output, options)
        from mucs_ray.planning.cost import estimate

        planned = "evaluate" if command == "run" else command
        estimated = estimate(pipeline, planned, workers=workers, price=price)
        print_plan(output, pipeline, pipeline.plan(planned))
        show_estimate(output.console, estimated)
        output.result(estimated.to_dict())


@app.command()
def status(run: Annotated[str, typer.Option("--run", help="Run directory.")], as_json: JsonOption = False) -> None:
    """Show where a run stands, or the runs of several seeds, from its directory alone and without Ray."""
    with terminal(as_json=as_json) as output:
        from mucs_ray.pipeline.graph import reopen
        from mucs_ray.run.seeds import is_experiment, reopen_seeds

        several = is_experiment(run)
        console = output.console
        runs = reopen_seeds(run, console=console) if several else [reopen(run, console=console)]
        described = []
        for pipeline in runs:
            command = "evaluate" if several else pipeline.last_command()
            plan = pipeline.plan(command)
            print_plan(output, pipeline, plan)
            states = {name: asdict(state) for name, state in plan.items()}
            described.append({"run": pipeline.run_url, "stages": states})
        output.result({"run": run, "seeds": described} if several else described[0])


@app.command()
def doctor(
    run: CheckRunOption = None,
    dataset: CheckDatasetOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check this machine, and every node of a cluster: packages, processors, memory, Ray, folders, optional weights."""
    with terminal(as_json=as_json) as output:
        from mucs_ray.doctor import check

        findings = check(run, address=address, dataset=dataset, verbose=verbose)
        for finding in findings:
            mark = (
                "[green]ok[/]     " if finding.ok else ("[yellow]missing[/]" if finding.optional else "[red]bad[/]    ")
            )
            text = f"{mark} {finding.name:<12} {escape(finding.found)}"
            output.console.print(text, highlight=False, soft_wrap=True)
        output.result({"findings": [asdict(finding) for finding in findings]})
        if not all(finding.ok or finding.optional for finding in findings):
            raise typer.Exit(3)


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """List the attribution methods, each with its variants, and the ensembles."""
    with terminal(as_json=as_json) as output:
        from mucs_ray.attribution.registry import all_methods

        for method in all_methods().values():
            text = f"[bold]{escape(method.name)}[/]  [cyan]{method.cost_class}[/]  {escape(method.summary)}"
            settings = ", ".join(f"{key}={value}" for key, value in (method.weights or method.settings).items())
            more = f"needs {method.needs}; costs {method.cost}; {method.source}"
            text += f"\n    [dim]{escape('; '.join(filter(None, (settings, more))))}[/]"
            output.console.print(text, highlight=False, soft_wrap=True)
        output.result({"methods": [method.facts() for method in all_methods().values()]})


def main() -> None:
    """Run the command line; this is the console script."""
    app()
