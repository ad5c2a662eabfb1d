"""The report's section on groups in words: the headline, what limits the result, and the table of agreement.

A method here is whatever gives scores to groups: models retrained or unlearned without each group, or an aggregation of
a method's scores of images, such as "mucs, sum".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mucs_ray.evaluation.group_agreement import Summary
from mucs_ray.evaluation.group_metrics import HEADLINE
from mucs_ray.evaluation.shares import QueryShares
from mucs_ray.report.document import Cell, ShareBar, Table
from mucs_ray.report.lds_tables import correlation
from mucs_ray.report.wording import counted_things, listed, note, whole_percent

SHOWN_SHARES = 5
"""The number of groups of an image that have a bar."""
BEST_BY = "NDCG@3 (exp)"
"""The metric by which the best of several aggregations is shown."""
CONTROL = "retain-only"
REPEATED = "trainings with another seed"

Summaries = Mapping[str, Summary]
"""By metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The agreement of all methods with the trainings without each group."""

    reference: str
    """The set of trainings that all others are compared with."""
    repeated: str | None
    """Another set with another seed, which shows what can be reached."""
    unlearners: tuple[str, ...]
    methods: Mapping[str, Summaries]
    num_images: int


def label_of(name: str, compared: Compared | None, labels: Mapping[str, str]) -> str:
    """Return what the report calls a method; `labels` are those of the methods that score images."""
    if compared and name in (compared.reference, compared.repeated):
        return "trainings without each group" if name == compared.reference else REPEATED
    method, comma, way = name.partition(", ")
    return f"{labels.get(method, method)}{comma}{way}" if comma else f"unlearning, {name}"


def shown_methods(compared: Compared) -> list[str]:
    """Return the unlearners, and the best aggregation of each method that scores images."""
    best: dict[str, str] = {}
    for name, summaries in compared.methods.items():
        if name == compared.repeated or name in compared.unlearners:
            continue
        method = name.partition(", ")[0]
        if method not in best or value(summaries[BEST_BY]) > value(compared.methods[best[method]][BEST_BY]):
            best[method] = name
    return [*(name for name in compared.unlearners if name in compared.methods), *best.values()]


def value(summary: Summary) -> float:
    """Return a mean; one that is not defined is below all others."""
    return -2.0 if summary.mean is None else summary.mean


def agreement_table(compared: Compared, labels: Mapping[str, str]) -> Table:
    """Lay out one row for each method, then the trainings with another seed, and chance."""
    names = shown_methods(compared)
    best = (
        {metric: max(value(compared.methods[name][metric]) for name in names) for metric in HEADLINE} if names else {}
    )
    rows = [
        (
            Cell(text=label_of(name, compared, labels)),
            *(
                metric_cell(
                    compared.methods[name][metric], strong=value(compared.methods[name][metric]) == best[metric]
                )
                for metric in HEADLINE
            ),
        )
        for name in names
    ]
    if compared.repeated is not None:
        summaries = compared.methods[compared.repeated]
        rows.append((Cell(text=REPEATED), *(metric_cell(summaries[metric]) for metric in HEADLINE)))
    one = next(iter(compared.methods.values()), {})
    chance = (one[metric].chance for metric in HEADLINE if metric in one)
    rows.append((Cell(text="chance"), *(Cell(text="" if level is None else correlation(level)) for level in chance)))
    return Table(
        key="groups",
        title="Do the scores order groups as trainings without each group do?",
        note=note(
            f"Means over {counted_things(compared.num_images, 'generated image')}; small print: the 95 % interval when"
            " images are drawn again. top-1: how often the first group is the same. MRR: 1 / the rank of the trainings’"
            " first group. NDCG@3 (exp): how good the first three are. Spearman: the correlation of all ranks. Higher"
            " is better.",
            f"Of several sums of a method’s scores the one with the best {BEST_BY} is shown, which favours it;"
            " groups/result has all."
            if len(names) < len(compared.methods) - (compared.repeated is not None)
            else "",
            f"{REPEATED.capitalize()}: what another set of trainings reaches; no method can be expected to exceed it."
            if compared.repeated
            else "",
        ),
        columns=("Method", *HEADLINE),
        rows=tuple(rows),
    )


def metric_cell(summary: Summary, *, strong: bool = False) -> Cell:
    """Lay out a mean with its interval in small print."""
    if summary.mean is None:
        return Cell(text="n/a")
    ends = summary.interval
    small = f"{correlation(ends[0])} to {correlation(ends[1])}" if ends else ""
    return Cell(text=correlation(summary.mean), note=small, strong=strong)


def headline(compared: Compared | None, shares: Sequence[QueryShares], labels: Mapping[str, str]) -> str:
    """Say for how many images a group stands out, and which method agrees best with the trainings."""
    clear = sum(not image.nobody for image in shares)
    of_shares = f"In {clear} of {counted_things(len(shares), 'generated image')} a group stands out." if shares else ""
    agreeing = agreement_sentence(compared, labels) if compared and shown_methods(compared) else ""
    return note(of_shares, agreeing) or "Scores of groups, without a training or a second noise to judge them by."


def agreement_sentence(compared: Compared, labels: Mapping[str, str]) -> str:
    """Say how often the best method names the same first group as the trainings."""
    best = max(shown_methods(compared), key=lambda name: value(compared.methods[name]["top-1"]))
    top = compared.methods[best]["top-1"]
    beats_chance = top.interval is not None and top.chance is not None and top.interval[0] > top.chance
    told = label_of(best, compared, labels)
    claim = (
        f"Of all methods, {told} names the first group of the trainings most often"
        if beats_chance
        else "No method is shown to name the first group of the trainings more often than chance does; the best,"
        f" {told}, does so"
    )
    numbers = [f"in {whole_percent(top.mean or 0)} of the images"]
    if compared.repeated:
        again = compared.methods[compared.repeated]["top-1"].mean
        numbers.append(f"{REPEATED} in {whole_percent(again or 0)}")
    if top.chance is not None:
        numbers.append(f"chance in {whole_percent(top.chance)}")
    return f"{claim}: {', '.join(numbers)}."


def no_better_than_control(compared: Compared) -> list[str]:
    """Return the unlearners that do not agree better with the trainings than training on without forgetting."""
    if CONTROL not in compared.methods:
        return []
    control = value(compared.methods[CONTROL][BEST_BY])
    own = [name for name in compared.unlearners if name in compared.methods and name != CONTROL]
    return [name for name in own if value(compared.methods[name][BEST_BY]) <= control]


def remarks(
    compared: Compared | None, *, overlapping: bool, ungrouped: int, misplaced: float, shares_by: str
) -> tuple[str, ...]:
    """Return sentences on what limits the result. `shares_by` is the method of the shares, "" without any."""
    weak = no_better_than_control(compared) if compared else []
    told = (
        (
            "Some images are in several groups: what one of these adds to an image, another may have added as well.",
            overlapping,
        ),
        (
            f"{counted_things(ungrouped, 'training image')} in no group: what they add to an image is nobody’s share.",
            ungrouped > 0,
        ),
        (
            f"{whole_percent(misplaced)} of the images were moved to wrong groups on purpose (groups.misplaced).",
            misplaced > 0,
        ),
        (
            "No model was trained without a group, so nothing here shows how far unlearning can be trusted;"
            " groups.golds=1 trains them.",
            compared is None,
        ),
        (
            "Scores were computed with one noise and one seed, so that no interval and no share can be told;"
            " groups.noise_sets=2 gives both.",
            not shares_by,
        ),
        (
            f"Unlearning by {listed(weak)} agrees no better with the trainings than training on without forgetting"
            f" ({CONTROL}), and so says nothing of its own.",
            bool(weak),
        ),
        (
            "The intervals of shares hold what noise does to scores, not what unlearning gets wrong, nor chance in"
            " training.",
            compared is None or compared.repeated is None,
        ),
    )
    return tuple(sentence for sentence, applies in told if applies)


def bars_of(image: QueryShares) -> tuple[tuple[ShareBar, ...], str]:
    """Return the bars of the largest shares of an image, and a sentence on the groups that have none."""
    bars = tuple(
        ShareBar(group=own.group, share=own.share, low=own.low, high=own.high) for own in image.shares[:SHOWN_SHARES]
    )
    rest = image.shares[SHOWN_SHARES:]
    if not rest:
        return bars, ""
    most = whole_percent(max(own.high for own in rest))
    return bars, f"{len(rest)} more {'group has' if len(rest) == 1 else 'groups have each'} {most} at most"
