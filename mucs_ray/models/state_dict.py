"""Whether tensors read from a file are those of a network: one line that names what differs."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from mucs_ray.errors import InputError


def check(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    network_name: str,
    path: str,
    *,
    shapes_too: bool = True,
) -> None:
    """Raise InputError unless the names are the same, and the shapes."""
    if actual and not actual.keys() & expected.keys():
        others = f"{len(actual)} unexpected ({few(map(repr, actual))})"
        raise InputError(f"{path}: not the tensors of {network_name}: all are missing, and {others}")
    shapes = [
        f"{name} is {shape(actual[name])}, not {shape(tensor)}"
        for name, tensor in expected.items()
        if name in actual and actual[name].shape != tensor.shape
    ]
    complaints = {
        "missing": [name for name in expected if name not in actual],
        "unexpected": [repr(name) for name in actual if name not in expected],
        "of another shape": shapes if shapes_too else [],
    }
    problems = [f"{len(names)} {complaint} ({few(names)})" for complaint, names in complaints.items() if names]
    if problems:
        raise InputError(f"{path}: not the tensors of {network_name}: {'; '.join(problems)}")


def shape(tensor: Tensor) -> str:
    """Write a shape such as 3x8x8."""
    return "x".join(map(str, tensor.shape)) or "a number"


def few(names: Iterable[str], limit: int = 3) -> str:
    """Join the first of the names."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
