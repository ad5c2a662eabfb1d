"""Numbers that are not finite are refused, and the first image that has one is named."""

import numpy as np
import pytest
import torch

from mucs_ray.attribution.finite import require_finite
from mucs_ray.errors import RunFailed

IDX = np.asarray([7, 8, 9])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_the_first_row_that_is_not_finite_is_named(bad: float, shape: tuple[int, ...], convert):
    values = np.zeros(shape, dtype=np.float32)
    require_finite(convert(values), convert(IDX), "the score of image")
    values[1:, ...] = 1
    values.reshape(3, -1)[1:, -1] = bad
    with pytest.raises(RunFailed, match=r"^the score of image idx=8 is not finite$"):
        require_finite(convert(values), convert(IDX), "the score of image")


def test_no_rows_are_finite():
    require_finite(np.zeros(0), IDX[:0], "the score of image")
