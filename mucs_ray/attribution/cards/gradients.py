"""The stages that D-TRAK and DAS have in common: gradient features, their inverse covariance, items, scores."""

from mucs_ray.attribution.card import MethodStage

COST = "N backward passes on a batch of noises, then one product an item"
PER_NOISE_SUMMARY = "as published: a backward pass for each noise"
PER_NOISE_COST = "(N + items) x noises backward passes, then one product an item"


def gradient_stages(section: str, *score_knobs: str) -> tuple[MethodStage, ...]:
    """The stages of a method whose knobs are in this section of the recipe."""
    knobs = ("noises", "noises_per_forward", "dim", "signs", "parameters", "gradients")
    reads = tuple(f"{section}.{knob}" for knob in knobs)
    scored = tuple(f"{section}.{knob}" for knob in score_knobs)
    return (
        MethodStage(name="features", hook="features", reads=reads, uses_items=False),
        MethodStage(name="solve", hook="prepare", reads=(f"{section}.damping",), uses_model=False, uses_items=False),
        MethodStage(name="items", hook="adapt"),
        MethodStage(name="score", hook="score", reads=scored, uses_model=False, uses_items=False),
    )
