"""Which settings make a counterfactual test sharp: AUC of a method against random removal, setting by setting.

    python benchmarks/counterfactual.py --seeds 101,102 --items 20 --vary rank.top_percent=2 --vary rank.top_percent=4
    python benchmarks/counterfactual.py --seeds 1..3 --method mucs,mucs/subtraction,dtrak,das,ensemble/R
    python benchmarks/counterfactual.py --vary train.updates=3000 --vary "train.updates=12000 train.batch_size=16"

Every `--vary` is one run of the whole protocol (`mucs-ray run`), all in the same run directory, so that what a setting
does not touch is not done again; several settings in one `--vary` are separated by spaces. A recipe's values are to be
chosen on other seeds than those reported.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any


def main() -> None:
    """Run each setting and print one line for it."""
    options = parse()
    print(f"{'AUC (n items)':<52} {'removed':>8} {'s an item':>9} {'time':>8}  metrics", flush=True)
    for varied in options.vary or [""]:
        settings = [*options.set, *varied.split()]
        started = time.monotonic()
        evaluation = run(options, settings)
        minutes = (time.monotonic() - started) / 60
        for method in evaluation["methods"]:
            numbers = "  ".join(
                f"{name} {measured['auc']:.3f}{p_text(measured['p'])} mean {measured['mean']:.3f}"
                for name, measured in method["metrics"].items()
            )
            name = f"{varied or 'recipe'}: {method['method']} ({evaluation['num_items']})"
            cost = f"{method['removed_share']:>8.1%} {method['seconds_an_item']:>9.2f} {minutes:>6.1f} m"
            print(f"{name:<52} {cost}  {numbers}", flush=True)


def p_text(p: float | None) -> str:
    """Write the one-sided p against random removal."""
    return "" if p is None else f" (p {p:.2g})"


def run(options: argparse.Namespace, settings: list[str]) -> dict[str, Any]:
    """Run the whole protocol in its own process, as a user would, and return its statistics."""
    command = [
        sys.executable,
        "-m",
        "mucs_ray.cli",
        "run",
        "--json",
        "--run",
        options.run,
        "--seeds",
        options.seeds,
    ]
    command += ["--dataset", options.dataset, "--items", str(options.items), "--method", options.method]
    if options.weights_dir:
        command += ["--weights-dir", options.weights_dir]
    for setting in settings:
        command += ["--set", setting]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout)["evaluation"]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="emoji")
    parser.add_argument("--method", default="mucs")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--seeds", default="101")
    parser.add_argument("--set", action="append", default=[], help="for every run")
    parser.add_argument("--vary", action="append", help="one run each")
    parser.add_argument("--run", default="runs/sweep", help="run directory")
    parser.add_argument("--weights-dir")
    return parser.parse_args()


if __name__ == "__main__":
    main()
