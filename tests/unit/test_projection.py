"""The sketch of a gradient equals a dense matrix that is never built; it is unbiased and the same in every worker."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.projection import Sketch
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.models.dit import DiT, DiTConfig

CPU = torch.device("cpu")
SIZES = {"a": 30, "b": 30, "c.weight": 7}


def sketch(sizes: dict[str, int] = SIZES, *, dim: int = 16, signs: int = 1, seed: int = 1) -> Sketch:
    return Sketch(sizes, dim=dim, signs=signs, seed=seed, device=CPU)


def dense(sizes: dict[str, int], *, dim: int, signs: int, seed: int) -> Tensor:
    """Return the matrix, coordinate by coordinate; a draw below dim is a plus, above it a minus."""
    columns = []
    for name, size in sizes.items():
        draws = generator(seed, f"sketch/{name}").integers(0, 2 * dim, size=(signs, size), dtype=np.int32)
        for coordinate in range(size):
            column = np.zeros(dim)
            for draw in draws[:, coordinate]:
                column[draw % dim] += (1 if draw < dim else -1) / np.sqrt(signs)
            columns.append(column)
    return torch.from_numpy(np.stack(columns, axis=1))


def pieces(vector: Tensor, sizes: dict[str, int] = SIZES) -> list[Tensor]:
    return list(vector.split(list(sizes.values())))


@pytest.mark.parametrize("signs", [1, 4])
def test_a_sketch_is_the_product_with_the_dense_matrix(signs: int):
    """On whole numbers, which fp32 adds exactly, it is so to the last bit when the factor is a power of two."""
    whole = torch.from_numpy(generator(2, "whole").integers(-9, 10, 67)).float()
    actual = sketch(signs=signs)(pieces(whole))
    matrix = dense(SIZES, dim=16, signs=signs, seed=1)
    assert actual.dtype == torch.float32
    assert torch.equal(actual.double(), matrix @ whole.double())
    assert torch.allclose(matrix.square().sum(0).mean(), torch.tensor(1.0, dtype=torch.float64), atol=0.5)


@pytest.mark.parametrize("signs", [1, 3])
def test_gradients_of_a_network_keep_their_shapes(signs: int):
    """Matrices, kernels and vectors of a small DiT are sketched; inner products are those of the dense projection (spec
    18).
    """
    network = DiT(DiTConfig(image_size=8, patch_size=4, width=8, depth=1, num_heads=1, registers=1,
                            condition_channels=4, kernel_size=3))  # fmt: skip
    named = [(name, normal(generator(3, name), *each.shape)) for name, each in network.named_parameters()]
    sizes = {name: tensor.numel() for name, tensor in named}
    matrix = dense(sizes, dim=64, signs=signs, seed=5)
    flat = torch.cat([tensor.flatten() for _, tensor in named]).double()
    actual = sketch(sizes, dim=64, signs=signs, seed=5)(tensor for _, tensor in named)
    torch.testing.assert_close(actual.double(), matrix @ flat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signs", [1, 2])
def test_inner_products_are_unbiased_with_the_variance_that_is_promised(signs: int):
    """Mean and variance are over 2000 seeds. x and y swap their first two tensors: equal places for both would show."""
    u, v, w = normal(generator(1, "u"), 30), normal(generator(1, "v"), 30), normal(generator(1, "w"), 7)
    x, y = torch.cat([u, v, w]), torch.cat([v, u, w])
    products = []
    for seed in range(2000):
        made = sketch(signs=signs, seed=seed)
        products.append((made(pieces(x)) @ made(pieces(y))).item())
    variance = (x.square().sum() * y.square().sum() + (x @ y).square() - 2 * (x * y).square().sum()).item() / 16
    assert np.mean(products) == pytest.approx((x @ y).item(), abs=4 * (variance / 2000) ** 0.5)
    assert np.var(products) == pytest.approx(variance, rel=0.2)


def test_places_are_even_and_signs_balanced():
    places = sketch({"a": 32_000}, dim=16).places[0]
    counts = torch.bincount(places.flatten(), minlength=32)
    assert places.dtype == torch.int32
    assert len(counts) == 32
    assert counts.float().sub(1000).square().sum().item() / 1000 < 62  # chi^2 with 31 degrees, p = 0.001


def test_places_belong_to_seed_and_name():
    """Neither other tensors nor further signs move them; seeds and names do."""
    first, alone = sketch().places, sketch({"b": 30}).places
    assert torch.equal(first[1], alone[0])
    assert torch.equal(sketch({"b": 30}, signs=3).places[0][:1], alone[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(sketch(seed=2).places[0], first[0])


def test_a_list_of_other_tensors_is_refused():
    with pytest.raises(ValueError, match="zip"):
        sketch()(pieces(torch.zeros(67))[:2])
