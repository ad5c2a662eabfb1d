"""Golden numbers are computed in a plain loop: as in the unit tests, Ray is refused."""

from unit.conftest import no_ray, pytest_make_collect_report

__all__ = ["no_ray", "pytest_make_collect_report"]
