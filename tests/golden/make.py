"""Computes the golden numbers, and writes them or compares them.

    python tests/golden/make.py                        writes tests/golden/files
    python tests/golden/make.py --out FOLDER           writes them elsewhere
    python tests/golden/make.py --against FOLDER       compares with the files of FOLDER, bit for bit; writes nothing
    python tests/golden/make.py --out A --against B    both

The package that is measured is the one beside this file. Exit code 1 if a number differs.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which reads it then
    sys.path[:1] = [str(HERE.parents[1]), str(HERE.parent)]  # this checkout, whatever is installed

import argparse  # noqa: E402
from typing import Any  # noqa: E402

from golden.compare import MACHINE_FILE, as_recorded, differences, read, reduced, write, write_machine  # noqa: E402
from golden.compute import CASES, compute  # noqa: E402

FILES = HERE / "files"


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Computes the golden numbers, and writes them or compares them.")
    parser.add_argument("--out", type=Path, help="folder to write; without --against: tests/golden/files")
    parser.add_argument("--against", type=Path, help="folder of files to compare with, bit for bit")
    asked = parser.parse_args(arguments)
    out = asked.out or (None if asked.against else FILES)
    if asked.against and not (asked.against / MACHINE_FILE).exists():
        parser.error(f"no golden files in {asked.against}; write some with --out")
    values = {case: reduced(compute(case)) for case in CASES}
    if out:
        for case, numbers in values.items():
            write(out, case, numbers)
        write_machine(out)
        print(f"{sum(map(len, values.values()))} numbers and tensors in {out}")
    return compared(values, asked.against) if asked.against else 0


def compared(values: dict[str, dict[str, Any]], against: Path) -> int:
    """Prints what differs; the exit code."""
    if not as_recorded(against):
        print(f"{against} was made on another machine or with other versions: last bits differ whatever the code does")
    told = {
        f"{case}/{name}": difference
        for case, numbers in values.items()
        for name, difference in differences(case, numbers, read(against, case), exact=True).items()
    }
    for name, difference in told.items():
        print(f"{name} {difference}")
    print(f"{len(told)} of {sum(map(len, values.values()))} numbers and tensors differ from those in {against}")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
