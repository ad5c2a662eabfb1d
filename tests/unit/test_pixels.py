"""The pixel space: the scale of every stored value, and the way back."""

import math

import torch

from mucs_ray.spaces.pixels import PIXELS


def test_black_middle_and_white_by_hand():
    z = PIXELS.encode(torch.tensor([[0, 51, 204, 255]], dtype=torch.uint8))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, torch.tensor([[-1, -0.6, 0.6, 1]]), rtol=0, atol=1e-7)


def test_decoding_is_clamped_and_keeps_what_is_not_a_number():
    pixels = PIXELS.decode(torch.tensor([-1.5, -1, -0.5, 0, 0.5, 1, 7, math.nan]))
    assert pixels[:-1].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1] and pixels[-1].isnan()


def test_every_stored_value_comes_back():
    stored = torch.arange(256, dtype=torch.uint8)
    assert torch.equal((PIXELS.decode(PIXELS.encode(stored)) * 255).round().to(torch.uint8), stored)


def test_shown_is_z_without_what_a_picture_cannot_show():
    z = torch.tensor([-1.5, -1, 0.3, 1, 7])
    assert torch.equal(PIXELS.shown(z), torch.tensor([-1, -1, 0.3, 1, 1]))
    assert torch.equal(PIXELS.decode(z), PIXELS.decode(PIXELS.shown(z)))
