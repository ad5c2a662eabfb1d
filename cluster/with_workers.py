"""Get GPUs from the autoscaler, run a command on them, and let them go.

    python cluster/with_workers.py --gpus 4 -- mucs-ray attribute --dataset s3://... --run s3://...

mucs-ray plans with what the cluster has when it starts, and an autoscaled cluster starts with no workers. The request
stands while the command runs, so a worker that is taken away is replaced; without it idle workers are removed.
Runs on a node of the cluster. Exit code: the command's, or 3 if not one GPU came.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

CHECK_EVERY_S = 5


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Our options, and after `--` the command."""
    parser = argparse.ArgumentParser(prog="with_workers.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, required=True, help="GPUs to ask for, at most those of max workers")
    parser.add_argument("--wait", type=float, default=1800, help="seconds to wait for all of them [default: 1800]")
    parser.add_argument("command", nargs="+", help="after --")
    told = parser.parse_args(words)
    if told.gpus < 1:
        parser.error("--gpus must be at least 1")
    return told


def wait_for_gpus(wanted: int, seconds: float) -> int:
    """GPUs that are there when all have come or the time is over."""
    import ray

    deadline = time.monotonic() + seconds
    while True:
        found = int(ray.cluster_resources().get("GPU", 0))
        if found >= wanted or time.monotonic() >= deadline:
            return found
        time.sleep(CHECK_EVERY_S)


def run(command: Sequence[str]) -> int:
    """The command's exit code; it gets the SIGTERM that ends us, and time to stop."""
    child = subprocess.Popen(command)  # noqa: S603 - running a given command is what this is for

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def main(words: Sequence[str]) -> int:
    """Ask, wait, run, let go."""
    told = arguments(words)
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False, logging_level=logging.ERROR)
    try:
        request_resources(bundles=[{"GPU": 1}] * told.gpus)
        found = wait_for_gpus(told.gpus, told.wait)
        print(f"{found} of {told.gpus} GPUs are there", file=sys.stderr, flush=True)
        if found == 0:
            print(f"error: no GPU came in {told.wait:g} s; see `ray status` on the head", file=sys.stderr)
            return 3
        return run(told.command)
    finally:
        request_resources(bundles=[])
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
