"""Numbers that belong to the rows of a tensor of any shape.

Axes: b rows, *shape of what a row holds.
"""

from jaxtyping import Float
from torch import Tensor


def per_row(values: Float[Tensor, " b"], like: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *ones"]:
    """Reshape `values` to as many axes as `like` has, so that each value meets its own row."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def row_means(table: Float[Tensor, "b *shape"], mask: Float[Tensor, "b *shape"] | None = None) -> Float[Tensor, " b"]:
    """The mean of each row, of what the mask leaves of it."""
    axes = tuple(range(1, table.ndim))
    return table.mean(dim=axes) if mask is None else (table * mask).sum(dim=axes) / mask.sum(dim=axes)


def repeated(table: Float[Tensor, "b *shape"], times: int) -> Float[Tensor, "r *shape"]:
    """Repeat all rows `times` times: r = times b."""
    return table.repeat(times, *[1] * (table.ndim - 1))


def copies(row: Float[Tensor, "*shape"], times: int) -> Float[Tensor, "b *shape"]:
    """Expand one row to a batch of copies, without taking more memory."""
    return row.expand(times, *row.shape)
