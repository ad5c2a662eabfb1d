"""A command can fail in three ways; each has one clear line and an exit code (README, "Exit codes")."""

from collections.abc import Mapping
from types import MappingProxyType


class MucsError(Exception):
    """This error is for the user to read: it says what was expected, what was found, and what to do."""

    exit_code = 1
    units: Mapping[str, str] = MappingProxyType({})
    """The units of work that failed, by name, each with its cause."""


class RunFailed(MucsError):
    """This error says that the work itself failed; the run directory is consistent and the same command resumes."""

    exit_code = 1


class InputError(MucsError, ValueError):
    """This error says that the request or its input is wrong; nothing was changed."""

    exit_code = 2


class MachineError(MucsError, OSError):
    """This error says that the machine lacks something: a package, a file of weights, a writable folder."""

    exit_code = 3
