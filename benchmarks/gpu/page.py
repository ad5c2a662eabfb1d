"""Write OUT/page.md and OUT/pictures.png from the result files of run.sh.

    python benchmarks/gpu/page.py --out FOLDER [--data FOLDER]

LPIPS is computed here, from the kept pictures, where the lpips package and DATA/weights_lpips are to be had; so a page
that was begun on a machine without them is completed by the same command on another.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import options

# isort: split
import torch
from PIL import Image

from mucs_ray.evaluation.statistics import auc

SECTIONS = ("correct", "throughput", "cifar10")
ENLARGED = 3
Facts = dict[str, Any]


def main() -> None:
    arguments = options(__doc__)
    sections = {name: facts for name in SECTIONS if (facts := read(arguments.out, name)) is not None}
    if not sections:
        raise SystemExit(f"no result files in {arguments.out}; run benchmarks/gpu/run.sh {arguments.out} first")
    command = (
        (arguments.out / "command.txt").read_text().strip() if (arguments.out / "command.txt").exists() else "run.sh"
    )
    lines = heading(next(iter(sections.values())), command)
    if "correct" in sections:
        lines += correctness(sections["correct"])
    if "throughput" in sections:
        lines += throughput(sections["throughput"])
    if "cifar10" in sections:
        lines += counterfactual(sections["cifar10"], perceptual(arguments.out, arguments.data))
    (arguments.out / "page.md").write_text("\n".join(lines) + "\n")
    if (arguments.out / "pictures.npz").exists():
        contact_sheet(arguments.out)
    print(f"wrote {arguments.out / 'page.md'}")


def read(out: Path, name: str) -> Facts | None:
    """Read a section's numbers, even of a section that was cut; None if there are none."""
    for file in (out / f"{name}.json", out / f"{name}.part.json"):
        if file.exists():
            return json.loads(file.read_text()) | {"cut": file.name.endswith(".part.json")}
    return None


def heading(facts: Facts, command: str) -> list[str]:
    machine = facts["machine"]
    card = machine["card"] if "driver" not in machine else f"{machine['card']}, {machine['memory_gib']:.0f} GiB"
    driver = f", driver {machine['driver']}" if "driver" in machine else ""
    return [
        f"# {card}, {machine['cpus']} CPUs ({facts['started'][:7]})",
        "",
        f"torch {machine['torch']}, Python {machine['python']}{driver}; begun {facts['started']} with `{command}`.",
        "Written by `benchmarks/gpu/page.py` from the result files of that command.",
    ]


def title(text: str, facts: Facts) -> list[str]:
    cut_note = " It was cut by its time limit: what is missing was not measured." if facts["cut"] else ""
    return ["", f"## {text}", "", f"This section took {facts['seconds']:.0f} s.{cut_note}", ""]


def correctness(facts: Facts) -> list[str]:
    sizes = facts["sizes"]
    lines = title("Is what the GPU computes right?", facts)
    lines += [
        f"A small model on the CPU in fp32, which is the reference, and on the GPU: {sizes['images']} images,"
        f" {sizes['noises']} noises, {sizes['items']} items. A difference is its norm over the reference's.",
        "",
        "| what | found |",
        "|---|---|",
    ]
    skipped = ("machine", "started", "seconds", "cut", "sizes")
    return lines + [f"| {name} | {in_words(value)} |" for name, value in facts.items() if name not in skipped]


def in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, dict):
        return "; ".join(f"{name} {in_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " to ".join(in_words(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def throughput(facts: Facts) -> list[str]:
    lines = title("How fast are the inner loops?", facts)
    lines += [
        "Random weights of the recipes' shapes, 100 noises, bf16, F1 and 4 F2s. FLOP are those of a plain forward,"
        " whatever models share; minutes are multiplied out to the whole training set and 20 items, not measured.",
    ]
    for name in dict.fromkeys(key.split(",")[0] for key in facts if key.endswith(", GFLOP a forward")):
        lines += of_size(name, facts)
    return lines


def of_size(name: str, facts: Facts) -> list[str]:
    ceiling = facts[f"{name}, ceiling TFLOP/s"]
    probe, minutes = facts.get(f"{name}, probe", {}), facts.get(f"{name}, minutes an item", {})
    shapes = ", ".join(f"{shape}: {rate:.0f}" for shape, rate in ceiling.items() if shape != "best")
    lines = [
        "",
        f"**{name}**: {facts[f'{name}, GFLOP a forward']:.3g} GFLOP a forward. Matrix products in bf16, TFLOP/s:"
        f" {shapes}; the fastest is the ceiling. The probe took {probe.get('images a forward', '?')} image(s) x 100"
        " noises a forward.",
        "",
        "| scoring | forwards/s | TFLOP/s | of the ceiling | GPU idle between pieces | minutes an item |",
        "|---|---|---|---|---|---|",
    ]
    for how in ("published", "eager", "eager, captured", "compiled", "compiled, captured"):
        row = facts.get(f"{name}, {how}")
        if row is None:
            continue
        if "failed" in row:
            lines.append(f"| {how} | failed: {row['failed']} | | | | |")
            continue
        took = minutes.get(f"MUCS scoring, {how}", "")
        rate, share = row["forwards/s"], row["of the ceiling"]
        idle = f"{row['idle between pieces']:.2%}" if "idle between pieces" in row else ""
        lines.append(f"| {how} | {rate:,.0f} | {row['TFLOP/s']:,.0f} | {share:.1%} | {idle} | {took} |")
    others = {key: value for key, value in minutes.items() if key != "paper" and not key.startswith("MUCS scoring")}
    if others:
        lines += [
            "",
            "Minutes an item of the rest: " + ", ".join(f"{key} {value:g}" for key, value in others.items()) + ".",
        ]
    for precision in ("TF32", "fp32"):
        if speeds := facts.get(f"{name}, {precision}"):
            lines += ["", "Measured: " + ", ".join(f"{key} {value:g}" for key, value in speeds.items()) + "."]
    updates = {key: value for key, value in facts.items() if key.startswith(f"{name}, training updates/s")}
    lines += [f"{key.removeprefix(f'{name}, ')}: {value:g}." for key, value in updates.items()]
    if paper := minutes.get("paper"):
        paper_minutes = ", ".join(f"{method} {value:g}" for method, value in paper.items())
        lines += ["", f"The paper's minutes an item, on an H100: {paper_minutes}."]
    return lines


def perceptual(out: Path, data: Path | None) -> dict[str, np.ndarray]:
    """Return 1 - LPIPS (VGG) of every picture and its regeneration, by method; empty where it cannot be computed."""
    weights = data / "weights_lpips" / "vgg16_features_fp16.safetensors" if data else None
    if weights is None or not weights.exists() or not (out / "pictures.npz").exists():
        return {}
    try:
        from mucs_ray.encoders.lpips import load_lpips

        similarity = load_lpips(str(weights), torch.device("cpu"), trunk="vgg")
    except ImportError as error:
        print(f"no LPIPS here: {error}", file=sys.stderr)
        return {}
    pictures = {
        name: torch.from_numpy(picture_set).float() / 255 for name, picture_set in np.load(out / "pictures.npz").items()
    }
    with torch.inference_mode():
        return {
            name: similarity(picture_set, pictures["generated"]).numpy()
            for name, picture_set in pictures.items()
            if name != "generated"
        }


def counterfactual(facts: Facts, lpips: dict[str, np.ndarray]) -> list[str]:
    training, scoring = facts.get("training", {}), facts.get("scoring", {})
    lines = title("A counterfactual test on real CIFAR-10", facts)
    das = facts.get("features of DAS", {})
    lines += [
        f"{training.get('images', 0):,} real pictures, a DiT of {facts.get('weights', 0) / 1e6:.1f} M weights without"
        f" conditions, {training.get('updates', 0):,} updates of {training.get('images an update', 0)} in bf16;"
        f" {facts.get('n', 0)} generated pictures, 2 % of the set each, the union removed, trained again from the same"
        f" initial weights. Scores on {scoring.get('noises', 0)} noises, DAS on {das.get('noises', 0)}. One seed, and"
        " nothing tuned.",
        "",
        "| | removed | AUC by SSIM | p, paired | mean SSIM | AUC by LPIPS | mean 1 - LPIPS |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, removed in facts.get("removed", {}).items():
        row = facts.get(f"SSIM, {name}")
        if row is None:
            continue
        by_lpips = f"{auc(lpips[name], lpips['random']):.3f} | {lpips[name].mean():.3f}" if lpips else "not computed |"
        lines.append(
            f"| {name} | {removed:,} | {row['AUC']:.3f} | {row['p, paired']:.2g} | {row['mean']:.3f} | {by_lpips} |"
        )
    skipped = ("machine", "started", "seconds", "cut", "n", "weights", "training", "removed")
    rest = {name: value for name, value in facts.items() if name not in skipped and not name.startswith("SSIM")}
    lines += ["", "| measured on the way | |", "|---|---|"]
    for name, value in rest.items():
        items = name.startswith("unlearning, ") and isinstance(value, list)
        lines.append(f"| {name} | {of_unlearning(value) if items else in_words(value)} |")
    return [*lines, "", "The pictures, as generated and after each retraining: `pictures.png` beside the result files."]


def of_unlearning(items: list[Facts]) -> str:
    """Describe how the items ended."""
    ended = Counter(item["outcome"] for item in items)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in ended.items())
    updates, limits = [item["updates"] for item in items], [item["limit"] for item in items]
    return f"{outcomes}; updates {min(updates)} to {max(updates)} (at most {min(limits)} to {max(limits)})"


def contact_sheet(out: Path) -> None:
    """Draw one row for the generated pictures, and one for each retraining."""
    rows = [
        np.concatenate(list(picture_set.transpose(0, 2, 3, 1)), axis=1)
        for picture_set in np.load(out / "pictures.npz").values()
    ]
    sheet = np.concatenate(rows, axis=0).repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    Image.fromarray(sheet).save(out / "pictures.png", optimize=True)


if __name__ == "__main__":
    main()
