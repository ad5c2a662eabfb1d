"""The embedded weights of the demo are those of the recipe, with a card."""

from pathlib import Path

import torch

from mucs_ray import storage
from mucs_ray.config.recipe import build, read_recipe
from mucs_ray.run.resolve import DEMO_WEIGHTS
from mucs_ray.store.weights import load_weights


def test_the_demos_weights_are_small_and_fit_the_recipe():
    spec, tensors = load_weights(DEMO_WEIGHTS)
    own = read_recipe("emoji")
    expected = build({**own, "model": {**own["model"], "image_size": 16, "condition_dim": 10}}).model
    assert spec == expected and {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert Path(DEMO_WEIGHTS).stat().st_size < 1.3e6
    card = storage.read_json(DEMO_WEIGHTS.replace(".safetensors", ".json"))
    assert card["sha256"] == storage.digest(DEMO_WEIGHTS) and "CC BY-SA 4.0" in card["licence_of_the_images"]
