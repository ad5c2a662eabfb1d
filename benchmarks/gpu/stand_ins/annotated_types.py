"""Stands in for the package of this name where it is absent: bounds of settings, which only pydantic reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ge:
    ge: float


@dataclass(frozen=True)
class Gt:
    gt: float


@dataclass(frozen=True)
class Le:
    le: float


@dataclass(frozen=True)
class Lt:
    lt: float
