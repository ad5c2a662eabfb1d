"""Four styles that paint the same contents, six objects at twelve places: pictures, captions, and what embeds them.

Two styles are warm and two cold, two soft and two lined, so that each has something in common with two of the others,
in its pictures and in the words of its captions. A text is embedded as the sum of a random direction for each of its
words, which stands in for CLIP.
Axes: n texts, d features, s pixels.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from mucs_ray import storage
from mucs_ray.data.table import Card, Dataset, Row, Shard, Split, schema, to_parquet, to_table
from mucs_ray.diffusion.noise import generator

SIZE, DIM, PLACES, TEST_PLACES = 16, 24, 12, 2
STYLES = {
    "Ember": ("warm", "soft", "glowing"),
    "Rust": ("warm", "lined", "iron"),
    "Tide": ("cold", "soft", "wavy"),
    "Frost": ("cold", "lined", "icy"),
}
OBJECTS = ("square", "disc", "cross", "bar", "frame", "corner")
WORDS = 2
TAGS = ("style", "object", "number")


def embed(texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """Return a direction for each text: the sum of those of its words."""
    vectors = [sum(direction(word) for word in re.findall("[a-z]+", text.lower())) for text in texts]
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors]).astype(np.float32)


def direction(word: str) -> Float[np.ndarray, " d"]:
    """Return the direction of a word; those that every caption has are short, since they tell nothing."""
    factor = 1.0 if word in {*OBJECTS, *(each for words in STYLES.values() for each in words)} else 0.1
    vector = generator(0, f"word/{word}").standard_normal(DIM)
    return factor * vector / np.linalg.norm(vector)


def written(url: str) -> Dataset:
    """Write the pictures of all styles, with captions, tags and a test split of places that no style is trained on."""
    contents = [(thing, place) for thing in OBJECTS for place in range(PLACES)]
    shards, idx = [], 0
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        rows = []
        for style in STYLES:
            for thing, place in contents:
                if (place < TEST_PLACES) == (split == "test"):
                    rows.append(row(idx, style, thing, place))
                    idx += 1
        content = to_parquet(to_table(rows, schema(DIM, embedding=True, tags=TAGS)), len(rows))
        path = f"{split}/part-00000.parquet"
        digest = storage.publish(storage.join(url, path), content)
        shards.append(Shard(path=path, split=split, row_groups=(len(rows),), sha256=digest))
    card = Card(
        name="styles", source="drawn", licence="none", size=SIZE, condition="embedding", condition_dim=DIM, tags=TAGS,
        shards=tuple(shards),
    )  # fmt: skip
    storage.publish_json(storage.join(url, "card.json"), card.to_json())
    return Dataset.open(url)


def row(idx: int, style: str, thing: str, place: int) -> Row:
    """Draw a picture with its caption, of two words of its style."""
    words = STYLES[style]
    picked = generator(0, f"caption/{idx}").permutation(len(words))[:WORDS]
    caption = f"A depiction of {thing}, artistic style featuring {', '.join(words[number] for number in picked)}"
    tags = {"style": style, "object": thing, "number": str(place)}
    return Row(idx=idx, image=painted(style, thing, place), text=(caption,), condition=embed([caption]), tags=tags)


def painted(style: str, thing: str, place: int) -> UInt8[np.ndarray, "3 s s"]:
    """Paint an object: the ground has the colour and the texture of the style, and the object its own shade."""
    words = STYLES[style]
    down, right = np.mgrid[0:SIZE, 0:SIZE]
    texture = (down // 2) % 2 if "lined" in words else (down + right) / (2 * SIZE)
    ground = np.array([0.9, 0.35, 0.1] if "warm" in words else [0.1, 0.35, 0.9])
    accent = {"Ember": [1.0, 0.9, 0.3], "Rust": [0.5, 0.2, 0.2], "Tide": [0.3, 0.9, 0.9], "Frost": [0.95, 0.95, 1.0]}
    image = ground[:, None, None] * (0.35 + 0.5 * texture)
    image[:, shape_of(thing, place)] = np.array(accent[style])[:, None]
    return (255 * image.clip(0, 1)).round().astype(np.uint8)


def shape_of(thing: str, place: int) -> Bool[np.ndarray, "s s"]:
    """Return where an object is; its place and size are the same in all styles."""
    stream = generator(0, f"content/{thing}/{place}")
    side = int(stream.integers(6, 10))
    top, left = stream.integers(0, SIZE - side, 2)
    down, right = np.mgrid[0:SIZE, 0:SIZE]
    y, x = (down - top + 0.5) / side * 2 - 1, (right - left + 0.5) / side * 2 - 1
    inside = (abs(x) < 1) & (abs(y) < 1)
    return {
        "square": inside,
        "disc": x**2 + y**2 < 1,
        "cross": inside & ((abs(x) < 0.35) | (abs(y) < 0.35)),
        "bar": inside & (abs(y) < 0.4),
        "frame": inside & ((abs(x) > 0.5) | (abs(y) > 0.5)),
        "corner": inside & (x < y),
    }[thing]
