"""Whether tensors read from a file are those of a network: one line that names what differs."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from mucs_ray.errors import InputError


def check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, path: str) -> None:
    """InputError unless the names and shapes are the same."""
    shapes = [
        f"{name} is {shape(found[name])}, not {shape(tensor)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    complaints = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [repr(name) for name in found if name not in expected],
        "of another shape": shapes,
    }
    told = [f"{len(names)} {complaint} ({few(names)})" for complaint, names in complaints.items() if names]
    if told:
        raise InputError(f"{path}: not the tensors of {what}: {'; '.join(told)}")


def shape(tensor: Tensor) -> str:
    """Such as 3x8x8."""
    return "x".join(map(str, tensor.shape)) or "a number"


def few(names: Iterable[str], limit: int = 3) -> str:
    """The first of them."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
