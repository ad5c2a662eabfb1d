"""Training data attribution for diffusion models, at any scale, on Ray.

The functions and classes here do what the commands do (docs/python-api.md). Importing this package is quick: neither
torch nor ray is imported before it is needed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mucs_ray.api import Run, attribute, open_run, prepare
    from mucs_ray.errors import InputError, MachineError, MucsError, RunFailed
    from mucs_ray.results.answer import Answer, Scores

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "InputError",
    "MachineError",
    "MucsError",
    "Run",
    "RunFailed",
    "Scores",
    "__version__",
    "attribute",
    "open_run",
    "prepare",
]
_MODULES = {
    "mucs_ray.api": ("Run", "attribute", "open_run", "prepare"),
    "mucs_ray.errors": ("InputError", "MachineError", "MucsError", "RunFailed"),
    "mucs_ray.results.answer": ("Answer", "Scores"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import the module of a public name when the name is first used."""
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'mucs_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
