"""Only some rooms may know which process, network, space and shape a model has.

The engine and the methods work for any model. What is particular to one is in diffusion/, models/ and spaces/; data/
and report/ may know pictures. Everywhere else such a word is a mistake, or the beginning of one.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "mucs_ray"
ROOMS = ("diffusion", "models", "spaces", "data", "report")
WORDS = {
    "a process": r"\bEDM\b|EDM\(|\bVP\b|sigma_data|SIGMA_DATA",
    "a network": r"\bDiT|\bdit_|\bUNet|\bunet",
    "the axes of a picture": r"\bh w\b",
    "three channels": r"\b3 \* |(?<!\w)\(3,|(zeros|ones|empty|rand\w*|normal|reshape|view|expand)\([^)]*\b3,",
    "a square": r"size ?\*\* ?2|size ?\* ?size|image_size",
    "rank 4": r"ndim (==|!=) 4|len\([\w.]*shape\) (==|!=) 4|\(1, 2, 3\)|\[:, None, None, None\]",
}


def places(text: str) -> list[tuple[int, str]]:
    """Return the line and the kind of each such word."""
    lines = enumerate(text.splitlines(), start=1)
    return [(number, what) for number, line in lines for what, word in WORDS.items() if re.search(word, line)]


def test_only_the_rooms_for_it_name_a_process_a_network_or_a_shape():
    places_by_file = {
        str(file.relative_to(ROOT)): here
        for file in sorted(ROOT.rglob("*.py"))
        if file.relative_to(ROOT).parts[0] not in ROOMS and (here := places(file.read_text()))
    }
    assert places_by_file == {}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("from mucs_ray.diffusion.edm import EDM", "a process"),
        ('"""For EDM it is 1."""', "a process"),
        ("weight = 1 / sigma_data", "a process"),
        ("model: DiTConfig", "a network"),
        ("from mucs_ray.models.dit_edm import untrained", "a network"),
        ('image: Float[Tensor, "b c h w"]', "the axes of a picture"),
        ('images: Float[Tensor, "n 3 h w"]', "the axes of a picture"),
        ("written_bytes=4 * 3 * side", "three channels"),
        ("noise = normal(stream, 5, 3, 8)", "three channels"),
        ("shape = (3, size, size)", "three channels"),
        ("pixels = size**2", "a square"),
        ("recipe.model.image_size", "a square"),
        ("if image.ndim != 4:", "rank 4"),
        ("losses.mean(dim=(1, 2, 3))", "rank 4"),
        ("sigma[:, None, None, None] * noise", "rank 4"),
    ],
)
def test_the_finder_finds(line: str, what: str):
    assert (2, what) in places(f"x = 1\n{line}\ny = 2\n")


@pytest.mark.parametrize(
    "line",
    ["noise = normal(stream, *model.shape)", "SECONDS = [0.1, 0.3, 1, 3, 10]", "edited = 3", "a unit", "at(3)"],
)
def test_the_finder_leaves_other_text_alone(line: str):
    assert places(line) == []
