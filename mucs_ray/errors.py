"""The three ways a command can fail; each is one clear line and an exit code (README, "Exit codes")."""

from collections.abc import Mapping
from types import MappingProxyType


class MucsError(Exception):
    """Something the user should read: what was expected, what was found, what to do."""

    exit_code = 1
    units: Mapping[str, str] = MappingProxyType({})
    """By name the units of work that failed, each with its cause."""


class RunFailed(MucsError):
    """The work itself failed; the run directory is consistent and the same command resumes."""

    exit_code = 1


class InputError(MucsError, ValueError):
    """The request or its input is wrong; nothing was changed."""

    exit_code = 2


class MachineError(MucsError, OSError):
    """The machine lacks something: a package, a file of weights, a writable folder."""

    exit_code = 3
