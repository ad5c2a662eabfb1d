"""The output of commands: the plan, the answer, results for programs, and our own errors as one line."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mucs_ray.errors import MucsError

if TYPE_CHECKING:
    from mucs_ray.evaluation.analysis import Analysis
    from mucs_ray.evaluation.lds import Lds
    from mucs_ray.planning.cost import Estimate
    from mucs_ray.store.run import State


SHOWN = 4
"""The number of places that the terminal shows of each item."""


CAPTION_WIDTH = 60
"""The number of characters of a caption that the terminal shows."""


class Terminal:
    """The output of one command: text for people on stdout (on stderr with --json), results for programs on stdout.

    Ray prints stray lines to sys.stdout, so that is pointed at stderr for the whole command.
    """

    def __init__(self, *, as_json: bool) -> None:
        """Point sys.stdout at stderr until the command ends."""
        self.out: TextIO = sys.stdout
        sys.stdout = sys.stderr
        self.as_json = as_json
        self.console = Console(file=sys.stderr if as_json else self.out)

    def result(self, document: dict[str, Any]) -> None:
        """Print a JSON document on stdout if --json was given."""
        if self.as_json:
            print(json.dumps(document), file=self.out, flush=True)


@contextmanager
def terminal(*, as_json: bool = False) -> Iterator[Terminal]:
    """Yield the output of a command, and turn our own errors into one line and an exit code."""
    output = Terminal(as_json=as_json)
    try:
        yield output
    except MucsError as error:
        Console(file=sys.stderr).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        message = escape(" ".join(str(error).splitlines()) or type(error).__name__)
        Console(file=sys.stderr).print(f"[red]error:[/] {message}", highlight=False, soft_wrap=True)
        raise typer.Exit(3) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        sys.stdout = output.out


def print_left_out(console: Console, reasons: Mapping[str, str]) -> None:
    """Print a line on the metrics that cannot be measured here, given the reason for each by name."""
    from mucs_ray.results.counterfactual import left_out

    for line in left_out(reasons):
        console.print(f"[yellow]{escape(line)}[/]", highlight=False, soft_wrap=True)


def show_plan(console: Console, plan: "Mapping[str, State]", *, title: str, run_url: str) -> None:
    """Print one line for each stage with its state and the reason."""
    console.print(f"[bold]{escape(title)}[/]  {escape(run_url)}", highlight=False, soft_wrap=True)
    width = max(len(name) for name in plan)
    for name, state in plan.items():
        colour = "green" if state.status == "done" else "yellow"
        reason = "" if state.status == "done" else escape(state.reason)
        line = f"  {name:<{width}} [{colour}]{state.status:<8}[/] [dim]{reason}[/]"
        console.print(line, highlight=False, soft_wrap=True)


def show_estimate(console: Console, estimated: "Estimate") -> None:
    """Print one line for each stage, the sum, and the measurement that the estimate rests on."""
    # on a narrow screen the words take more lines; stages are called as beside their progress
    words = [Column(title, overflow="fold", min_width=8) for title in ("stage", "work")]
    numbers = [Column(title, justify="right", no_wrap=True) for title in estimated.titles()]
    table = Table(*words, *numbers, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for cost in (*estimated.stages, estimated.total):
        table.add_row(cost.stage.removeprefix("attribute/").replace("/", " "), cost.work, *cost.cells())
    console.print(table)
    console.print(escape(estimated.basis), highlight=False, soft_wrap=True)
    if estimated.warning:
        console.print(f"[yellow]{escape(estimated.warning)}[/]", highlight=False, soft_wrap=True)


def show_answer(
    console: Console, document: dict[str, Any], analyses: Sequence["Analysis"], lds: "Lds | None" = None
) -> None:
    """Print the first places of each item's list, the results of the tests, and where the files are."""
    from mucs_ray.results.counterfactual import sentence, without_variants

    attributions = document.get("attributions", {})
    for method in without_variants(list(attributions)):
        attribution = attributions[method]
        heading = f"most influential training images by {method}: idx (score) name, caption or class"
        of_user = any("query" in item for item in attribution["items"])
        table = Table("item", "picture" if of_user else "idx", heading, box=None)
        for item in attribution["items"]:
            table.add_row(str(item["item"]), escape(item.get("query", str(item["idx"]))), escape(top_places(item)))
        console.print(table)
        for name in ("scores", "topk"):
            console.print(f"{name:<7} {escape(attribution[name])}", highlight=False, soft_wrap=True)
    for warning in document.get("warnings", ()):
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    for analysis in analyses:
        console.print(auc_table(analysis))
        console.print(sentence(analysis), highlight=False, soft_wrap=True)
    if analyses and "compared_by" in document:
        console.print(escape(document["compared_by"]), highlight=False, soft_wrap=True)
    if lds is not None:
        from mucs_ray.results import lds as results

        console.print(lds_table(lds))
        console.print(results.sentence(lds), highlight=False, soft_wrap=True)
    console.print(f"{'report':<7} {escape(document['report'])}", highlight=False, soft_wrap=True)


def show_groups(console: Console, document: Mapping[str, Any]) -> None:
    """Print how each method's scores of groups agree with those of the trainings, and where the files are."""
    sizes = ", ".join(f"{name} {size:,}" for name, size in zip(document["groups"], document["sizes"], strict=True))
    console.print(f"groups  {escape(sizes)}", highlight=False, soft_wrap=True)
    agreement = document.get("agreement", {})
    if agreement:
        metrics = list(next(iter(agreement.values())))
        table = Table("agreement with trainings without each group", *metrics, box=None)
        for name, means in {**agreement, "chance": document["chance"]}.items():
            table.add_row(escape(name), *("" if means[each] is None else f"{means[each]:.3f}" for each in metrics))
        console.print(table)
    shares = document.get("shares")
    if shares:
        told = f"by {shares['method']}; {shares['nobody']} of {shares['images']} images are nobody's in particular"
        console.print(f"shares  {told}", highlight=False, soft_wrap=True)
    for file in document["files"]:
        console.print(f"file    {escape(file)}", highlight=False, soft_wrap=True)
    if "report" in document:
        console.print(f"report  {escape(document['report'])}", highlight=False, soft_wrap=True)


def top_places(item: Mapping[str, Any]) -> str:
    """Return the first places of an item, with names and captions or classes: one line for each if there are any."""
    words = [
        "  ".join(filter(None, (name, caption_text(caption))))
        for name, caption in zip(item["names"], item["captions"], strict=True)
    ]
    places = [
        f"{idx} ({score:.3f}) {text}".rstrip() for (idx, score), text in zip(item["top"][:SHOWN], words, strict=False)
    ]
    return ("\n" if any(words[:SHOWN]) else "  ").join(places)


def caption_text(caption: str) -> str:
    """Return a caption on one line, cut, without what a terminal would obey."""
    whole = "".join(sign for sign in " ".join(caption.split()) if sign.isprintable())
    return whole if len(whole) <= CAPTION_WIDTH else f"{whole[: CAPTION_WIDTH - 1]}…"


def auc_table(analysis: "Analysis") -> Table:
    """Return a table of the AUC against random removal by method and metric; .5 = no effect, 1 = total separation."""
    table = Table(f"AUC, {analysis.mode} removal", "removed", *analysis.metrics, box=None)
    for method in analysis.methods:
        values = [f"{method.metrics[metric].auc:.3f}" for metric in analysis.metrics]
        table.add_row(method.method, f"{method.removed_share:.1%}", *values)
    return table


def lds_table(scores: "Lds") -> Table:
    """Return a table of the LDS over all subsets by method and f, with intervals; 0 = chance."""
    of_all = scores.kinds[0]
    table = Table(f"LDS, {of_all.subsets} subsets", *scores.names, box=None)
    for method in of_all.methods:
        values = [method.scores.get(name) for name in scores.names]
        table.add_row(
            method.method, *("" if v is None else f"{v.mean:.3f} ({v.low:.2f} to {v.high:.2f})" for v in values)
        )
    return table
