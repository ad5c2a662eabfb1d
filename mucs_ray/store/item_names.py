"""The names of items' files."""

from mucs_ray.store.run import Stage


def item_name(number: int) -> str:
    """Return the name of an item in file and folder names."""
    return f"item-{number:04d}"


def item_file(stage: Stage, number: int) -> str:
    """Return the name of an item's part."""
    return stage.part(item_name(number), "safetensors")
