"""The page of benchmarks/groups.py: tables in Markdown from the numbers of its studies."""

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mucs_ray import __version__
from mucs_ray.evaluation.group_agreement import intervals_of_means
from mucs_ray.evaluation.group_metrics import HEADLINE, METRICS

STUDIES = ("planted", "emoji", "cifar10", "growth")
CHOSEN_BY = "NDCG@3 (exp)"
CONTROL, FLOOR, GOLD = "retain-only", "retrained-repeat", "retrained"
Row = dict[str, Any]


def write_page(run: str, page: str) -> None:
    """Write the page of all studies whose numbers are there."""
    parts = [
        "# Groups: retrained, unlearned, and summed up",
        f"{platform.machine()}, {os.cpu_count()} shared cores, no GPU; mucs-ray {__version__}. Written by"
        " `benchmarks/groups.py` from what it measured; seconds are wall time of a machine that others use too.",
    ]
    for study in STUDIES:
        file = Path(run) / f"{study}.json"
        if file.exists():
            found = json.loads(file.read_text())
            parts += growth(found) if study == "growth" else comparison(study, found)
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    Path(page).write_text("\n\n".join(parts) + "\n")


def comparison(study: str, found: dict[str, Any]) -> Iterator[str]:
    """Yield the section of a study: what was done, the table, and who is best."""
    seeds = list(found["seeds"])
    first, last = (found["seeds"][seed]["methods"] for seed in (seeds[0], seeds[-1]))
    sizes = ", ".join(f"{name} {size}" for name, size in zip(found["groups"], found["sizes"], strict=True))
    yield f"## {study}"
    yield f"`{found['command']}`; settings: `{' '.join(found['settings'])}`. Groups: {sizes}."
    yield (
        f"{found['items']} generated images. Agreement with trainings without each group; the way to unlearn and the"
        f" sum of each method are chosen on seed {seeds[0]} by {CHOSEN_BY}, and the table is of seed"
        f" {seeds[-1]}{', the same' if len(seeds) == 1 else ''}. In brackets: the 95 % interval when images are drawn"
        " again. Own and others: the mean score of the group that is first by the trainings, and of the others. Passes:"
        " of single images through the network, a backward one with its forward counted once."
    )
    yield table(first, last, len(found["groups"]))
    yield verdict(first, last)
    yield from generating(found, seeds)


def table(first: dict[str, Row], last: dict[str, Row], num_groups: int) -> str:
    """Lay out the floor, every way to unlearn, the chosen sum of each method, and chance."""
    lines = [
        f"| | {' | '.join(HEADLINE)} | own | others | passes | s |",
        f"|---|{'---|' * (len(HEADLINE) + 4)}",
        line("trainings without each group", last[GOLD]),
        *([line("the same with another seed (floor)", last[FLOOR])] if FLOOR in last else []),
    ]
    lines += [line(f"unlearning: {name}", row) for name, row in last.items() if "updates" in row]
    lines += [line(name, last[name]) for name in chosen_sums(first).values()]
    chance = {metric.name: metric.chance for metric in METRICS}
    levels = [told(num_groups) if (told := chance[name]) else None for name in HEADLINE]
    lines.append(f"| chance | {' | '.join('' if level is None else f'{level:.3f}' for level in levels)} | | | | |")
    return "\n".join(lines)


def line(name: str, row: Row) -> str:
    """Lay out one method."""
    cells = [metric(row["values"][each]) if "values" in row else "" for each in HEADLINE]
    numbers = [f"{row['own']:.3g}", f"{row['others']:.3g}", f"{row['passes']:,.0f}", f"{row['seconds']:,.0f}"]
    return f"| {name} | {' | '.join([*cells, *numbers])} |"


def metric(values: list[float]) -> str:
    """Write a mean with its interval."""
    known = np.asarray(values, dtype=np.float64)
    (ends,) = intervals_of_means(known[:, None], seed=1)
    told = "" if ends is None else f" ({ends[0]:.2f} to {ends[1]:.2f})"
    return "n/a" if np.isnan(known).all() else f"{np.nanmean(known):.3f}{told}"


def mean(row: Row) -> float:
    """Return the mean of the metric by which is chosen."""
    return float(np.nanmean(row["values"][CHOSEN_BY]))


def chosen_sums(rows: dict[str, Row]) -> dict[str, str]:
    """Return the best aggregation of each method that scores images."""
    best: dict[str, str] = {}
    for name, row in rows.items():
        if name in (GOLD, FLOOR) or "updates" in row:
            continue
        method = name.split(",")[0]
        if method not in best or mean(row) > mean(rows[best[method]]):
            best[method] = name
    return best


def verdict(first: dict[str, Row], last: dict[str, Row]) -> str:
    """Say which way to unlearn was chosen, and how it compares with the best sum and with the control."""
    ways = {name: row for name, row in first.items() if "updates" in row}
    unlearned = max((name for name in ways if not name.startswith(CONTROL)), key=lambda name: mean(first[name]))
    control = max((name for name in ways if name.startswith(CONTROL)), key=lambda name: mean(first[name]))
    summed = max(chosen_sums(first).values(), key=lambda name: mean(first[name]))
    told = [f"Chosen on the first seed: {unlearned}; of the sums: {summed}."]
    for other in (summed, control):
        differences = [difference(last[unlearned], last[other], name) for name in HEADLINE]
        told.append(f"{unlearned} less {other}: {', '.join(differences)}.")
    return " ".join(told)


def difference(one: Row, other: Row, name: str) -> str:
    """Write the mean difference on the same images with its interval, and whether it is one."""
    values = np.asarray(one["values"][name], dtype=np.float64) - np.asarray(other["values"][name], dtype=np.float64)
    (ends,) = intervals_of_means(values[:, None], seed=1)
    told = "" if ends is None else f" ({ends[0]:+.2f} to {ends[1]:+.2f})"
    return f"{name} {np.nanmean(values):+.3f}{told}"


def generating(found: dict[str, Any], seeds: list[str]) -> Iterator[str]:
    """Yield how often the first group is the planted one."""
    by_seed = {seed: found["seeds"][seed] for seed in seeds if "generating" in found["seeds"][seed]}
    for seed, of_seed in by_seed.items():
        right = of_seed["generating"]
        shown = ", ".join(f"{name} {share:.0%}" for name, share in right.items() if ", " not in name or "sum" in name)
        yield (
            f"Seed {seed}: how often the first group is the planted one, which the nearest training images tell (they"
            f" agree in {of_seed['votes']:.0%}; unlearning by {found['updates'][-1]} updates): {shown}."
        )


def growth(found: dict[str, Any]) -> Iterator[str]:
    """Yield the section on ever more groups."""
    yield "## More and more groups"
    yield (
        f"`{found['command']}`; settings: `{' '.join(found['settings'])}`. {found['images']:,} training images in as"
        " many groups as said, each unlearned in one way, and 8 generated images scored with 2 noises. Seconds of the"
        " whole command, the first one with its training, and of the stages; the peak resident memory, in MiB, of the"
        " command and of the largest worker."
    )
    rows = found["rows"]
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(f'{row[name]:,.0f}' for name in columns)} |" for row in rows]
    yield "\n".join(lines)
