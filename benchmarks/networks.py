"""Networks side by side on one data set: pictures, loss and the counterfactual test of each.

    python benchmarks/networks.py --run runs/networks --seeds 101,102 --items 12
    python benchmarks/networks.py --cases unet unet-weights --run runs/networks

Each case is the whole protocol (`mucs-ray run`): the recipe's DiT-EDM, a UNet2DModel that predicts noise, and the same
UNet unlearned in all its tensors but biases instead of its convolutions. Each network has a run directory of its own,
so that both cases of the UNet train it once. Its size and updates are such that it trains about as long as the DiT of
emoji. Beside the table the script writes networks.png: test images, and below them what each network made of their
conditions in the first seed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from mucs_ray import storage
from mucs_ray.data.table import Dataset
from mucs_ray.pipeline.graph import reopen
from mucs_ray.run.seeds import folder, parse_seeds
from mucs_ray.spaces.pictures import to_bytes
from mucs_ray.store.items import load_item

UNET = [
    "model.kind=unet2d",
    "model.channels=[32, 64]",
    "model.layers=1",
    "model.attention_down=[false, true]",
    "model.attention_up=[false, true]",
    "model.head_width=16",
    "model.groups=8",
    "model.dropout=0.0",
    'model.beta_schedule="squaredcos_cap_v2"',
    "train.learning_rate=1e-3",
    "train.updates=800",
    "generate.steps=50",
]
CASES = {
    "dit": [],
    "unet": UNET,
    "unet-weights": [*UNET, "method.mucs.parameters=weights"],
}
SHOWN_PX = 64
"""The side of an image on the sheet."""


def main() -> None:
    """Run each case, print a line for each method and metric, and draw the sheet."""
    options = parse()
    titles = f"{'val. loss':>9} {'train s':>8} {'unlearn s':>9}  AUC against random removal (p, n)"
    print(f"{'case':<14} {titles}", flush=True)
    for case in options.cases:
        evaluation = run(options, case)
        loss, seconds = facts_of(options, case)
        for method in evaluation["methods"]:
            numbers = ", ".join(
                f"{name} {found['auc']:.3f} (p {found['p']:.2g}, n {evaluation['num_items']})"
                for name, found in method["metrics"].items()
            )
            costs = f"{loss:>9.4f} {seconds:>8.0f} {method['seconds_an_item']:>9.1f}"
            print(f"{case:<14} {costs}  {method['method']}: {numbers}", flush=True)
    drawn = sheet(options)
    times = max(1, SHOWN_PX * options.items // drawn.width)
    drawn.resize((times * drawn.width, times * drawn.height), Image.Resampling.NEAREST).save(options.sheet)
    print(options.sheet)


def run(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Run the whole protocol in its own process, as a user would, and return its statistics."""
    command = [sys.executable, "-m", "mucs_ray.cli", "run", "--json", "--run", network_url(options, case)]
    command += ["--dataset", options.dataset, "--seeds", options.seeds, "--items", str(options.items)]
    for setting in [*CASES[case], *options.set]:
        command += ["--set", setting]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout)["evaluation"]


def network_url(options: argparse.Namespace, case: str) -> str:
    """Return the run directory of a case's network."""
    return f"{options.run}/{case.partition('-')[0]}"


def seed_url(options: argparse.Namespace, case: str) -> str:
    """Return the run directory of a case's first seed."""
    return storage.absolute(f"{network_url(options, case)}/{folder(parse_seeds(options.seeds)[0])}")


def facts_of(options: argparse.Namespace, case: str) -> tuple[float, float]:
    """Return the validation loss and the seconds of the first seed's pretraining."""
    pipeline = reopen(seed_url(options, case), console=Console(quiet=True))
    facts = pipeline.stages["pretrain"].facts()
    return facts["best_loss"], facts["seconds"]


def sheet(options: argparse.Namespace) -> Image.Image:
    """Draw the test images, and below them what each case made of their conditions."""
    rows: list[list[np.ndarray]] = []
    for url in dict.fromkeys(seed_url(options, case) for case in options.cases):
        pipeline = reopen(url, console=Console(quiet=True))
        items = [load_item(pipeline.stages["generate"], number) for number in range(options.items)]
        if not rows:
            found = Dataset.open(pipeline.dataset.url).find({item.idx for item in items}, "test")
            rows.append([found[item.idx].image for item in items])
        rows.append([to_bytes((item.z * 0.5 + 0.5).clamp(0, 1)) for item in items])
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1).transpose(1, 2, 0))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dataset", default="emoji")
    parser.add_argument("--seeds", default="101")
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], help="for every case")
    parser.add_argument("--run", default="runs/networks", help="folder of the run directories")
    parser.add_argument("--sheet", type=Path, default=Path("networks.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
