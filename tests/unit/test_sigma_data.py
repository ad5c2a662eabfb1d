"""sigma_data of EDM can be another number, or the root mean square of the training images; .5 is as it always was."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mucs_ray.config.recipe import build
from mucs_ray.diffusion import edm
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.errors import InputError
from mucs_ray.models import spec
from mucs_ray.models.adapters import adapter
from mucs_ray.models.dit_config import DiTConfig, DiTVPConfig
from mucs_ray.models.unet_config import UNetEDMConfig, UNetVPConfig
from mucs_ray.run.resolve import resolve
from mucs_ray.training.ema import frozen_copy
from tiny import tiny_dataset, tiny_recipe

CPU = torch.device("cpu")
SMALL = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "condition_channels": 8}


def test_coefficients_by_hand():
    """At sigma = .6 and sd = .8: c_in = 1, c_skip = .64, c_out = .48, and omega = 1 / .48^2."""
    process, sigma = EDM(0.8), torch.tensor([0.6], dtype=torch.float64)
    image, noise, raw = (normal(generator(1, name), 1, 2, 2).double() for name in ("z", "noise", "raw"))
    noisy = image + 0.6 * noise
    torch.testing.assert_close(process.noised(image, noise, sigma), noisy)
    torch.testing.assert_close(process.target(image, noise, sigma), 0.75 * image - 0.8 * noise)
    torch.testing.assert_close(process.denoised(raw, noisy, sigma), 0.64 * noisy + 0.48 * raw)
    torch.testing.assert_close(process.denoised(process.target(image, noise, sigma), noisy, sigma), image)
    assert process.loss_weight(sigma).item() == pytest.approx(1 / 0.48**2)
    at = process.at(sigma)
    assert [at.p.item(), at.q.item(), at.c_in.item()] == pytest.approx([0.75, -0.8, 1.0])


def test_on_images_of_that_mean_square_the_null_loss_is_1_at_every_level():
    """Then one bound for all levels is a bound for each; with sd = .5 it is between 1 and 2.31."""
    level, v = EDM().scoring_levels(20, 0.7).double(), 0.577
    own = EDM(v**0.5)
    for bound in (own.zero_output_bound(level, v), own.linear_bound(level, v)):
        torch.testing.assert_close(bound, torch.ones(20, dtype=torch.float64))
    assert own.zero_output_loss(v) == pytest.approx(1) and own.second_moment == pytest.approx(v)
    other = EDM().zero_output_bound(torch.tensor([1e-4, 1e4], dtype=torch.float64), v)
    assert other.tolist() == pytest.approx([1, 2.308], rel=1e-3)


@pytest.mark.parametrize("config_class", [DiTConfig, UNetEDMConfig])
def test_a_model_is_on_the_process_of_its_spec(config_class: type[DiTConfig] | type[UNetEDMConfig]):
    small = SMALL if config_class is DiTConfig else {"image_size": 8, "channels": 32, "blocks": 1}
    for given, expected in (({}, 0.5), ({"sigma_data": 0.7}, 0.7)):
        config = config_class(**small, **given)
        model = adapter(config).model(CPU)
        assert frozen_copy(model).process.sigma_data == expected
        assert config.to_dict().get("sigma_data", "not stored") == given.get("sigma_data", "not stored")
        config.check()
    assert spec.SIGMA_DATA == edm.SIGMA_DATA == 0.5


def unread() -> float:
    raise AssertionError("the training images were read")


def test_only_what_is_to_be_measured_is_measured():
    for config_class in (DiTConfig, UNetEDMConfig):
        found = config_class.measured({"sigma_data": "data", "depth": 3}, lambda: 0.577)
        assert found == {"sigma_data": 0.7596, "depth": 3}
        assert config_class.measured({"sigma_data": 0.6}, unread) == {"sigma_data": 0.6}
    assert UNetVPConfig.measured({"sigma_data": "data"}, unread) == {"sigma_data": "data"}


def test_a_model_on_another_process_has_none():
    with pytest.raises(InputError, match=r"model\.sigma_data is of the EDM process"):
        DiTVPConfig(sigma_data=0.7).check()
    with pytest.raises(InputError, match=r"unknown recipe key model\.sigma_data"):
        build({"name": "x", "data": "x", "model": {"kind": "unet-vp", "sigma_data": 0.7}})
    with pytest.raises(InputError, match=r"recipe key model.sigma_data: .*found 'data'"):
        build({"name": "x", "data": "x", "model": {"sigma_data": "data"}})
    with pytest.raises(InputError, match=r"recipe key model.sigma_data: .*greater than 0"):
        build({"name": "x", "data": "x", "model": {"sigma_data": 0.0}})


def test_a_recipe_holds_the_number_that_was_measured(tmp_path: Path):
    dataset, told = tiny_dataset(tmp_path), io.StringIO()
    pictures = torch.cat([dataset.batch(table).z for table in dataset.stream("train")])
    (tmp_path / "own.toml").write_text(f'name = "own"\ndata = "{dataset.url}"\n')
    settings = [f"model.{key}={value}" for key, value in SMALL.items()]
    recipe, _ = resolve(
        dataset=None,
        recipe=str(tmp_path / "own.toml"),
        weights=None,
        settings=[*settings, "model.sigma_data=data"],
        console=Console(file=told),
    )
    expected = round(pictures.square().mean().sqrt().item(), 4)
    assert recipe.to_dict()["model"]["sigma_data"] == expected != 0.5
    assert told.getvalue() == f"model.sigma_data = {expected:g}, measured on the training images\n"
    assert "sigma_data" not in tiny_recipe("x").to_dict()["model"]
