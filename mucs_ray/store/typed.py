"""JSON objects read as dataclasses, so that code that reads a file names its keys and types in one place."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mucs_ray.errors import InputError

Values = TypeVar("Values")


def typed(values: Mapping[str, Any], kind: type[Values], source: str) -> Values:
    """Return a dataclass made of a JSON object; keys that are no fields are left out.

    InputError, naming `source` and the key, if a value is absent or has a wrong type.
    """
    try:
        return validator(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{source}: {key}: {problem['msg']}; delete the file and run the command again") from None


@cache
def validator(kind: type[Any]) -> TypeAdapter[Any]:
    """Return pydantic's validator for a dataclass, which takes a while to build."""
    return TypeAdapter(kind)
