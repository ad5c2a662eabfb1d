"""How the files of items are called."""

from mucs_ray.store.run import Stage


def item_name(number: int) -> str:
    """How an item is called in file and folder names."""
    return f"item-{number:04d}"


def item_file(stage: Stage, number: int) -> str:
    """Name of an item's part."""
    return stage.part(item_name(number), "safetensors")
