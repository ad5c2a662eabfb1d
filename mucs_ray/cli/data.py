"""The commands `mucs-ray data ...`, which prepare a training set and show its images."""

import io
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from mucs_ray.cli.options import AddressOption, JsonOption, VerboseOption
from mucs_ray.cli.terminal import terminal

if TYPE_CHECKING:
    from PIL import Image

    from mucs_ray.data.show import Shown

DRAWN_PX = 24
"""The side of an image in the terminal, where a character is one pixel wide and two high."""

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare and look at training sets.")


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="emoji, cifar10, artbench10, coco, folder or parquet.")],
    source: Annotated[str | None, typer.Option("--source", help="Where the original files are.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="URL to write to [default: data/NAME].")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Shorter side in pixels.")] = None,
    rows_per_unit: Annotated[
        int | None, typer.Option("--rows-per-unit", min=1, help="Images in a unit of work [default: 256].")
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a training set in the canonical form: Parquet shards and a card."""
    with terminal(as_json=as_json) as output:
        from mucs_ray.run.resolve import prepare_data

        prepared = prepare_data(
            name,
            source,
            out or f"data/{name}",
            size,
            rows_per_unit=rows_per_unit,
            console=output.console,
            address=address,
            verbose=verbose,
        )
        card = prepared.card
        counts = {split: card.num_images(split) for split in ("train", "test")}
        output.console.print(
            f"{prepared.url}: {counts['train']:,} train, {counts['test']:,} test images of {card.size} px,"
            f" condition {card.condition} {card.condition_dim or ''}, {card.num_rejected} rejected",
            highlight=False,
            soft_wrap=True,
        )
        output.result({"url": prepared.url, "counts": counts, "rejected": card.num_rejected, "size": card.size})


@data_app.command("show")
def data_show(
    dataset: Annotated[
        str, typer.Argument(help="A prepared data set: a recipe's name (emoji, cifar10, ...) or its URL.")
    ],
    idx: Annotated[list[int] | None, typer.Option("--idx", help="Once or more [default: the first images].")] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A name in the source, its last part, or *part*; once or more.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Draw the images on one sheet, a PNG at any URL.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show images of a prepared set: their names, classes, captions and pixels."""
    with terminal(as_json=as_json) as output:
        from mucs_ray import storage
        from mucs_ray.data import show
        from mucs_ray.data.table import Dataset
        from mucs_ray.run.resolve import data_url

        opened = Dataset.open(data_url(dataset))
        images = show.find_images(opened, idx=idx or (), names=name or ())
        for shown in images:
            output.console.print(line(shown), highlight=False, soft_wrap=True)
            if out is None and output.console.is_terminal:
                output.console.print(drawn(show.middle(shown.row, opened.card.size)))
        if out is not None:
            buffer = io.BytesIO()
            show.sheet(images, opened.card.size).save(buffer, "PNG")
            storage.publish(storage.absolute(out), buffer.getvalue())
            output.console.print(f"drawn at {escape(out)}", highlight=False, soft_wrap=True)
        output.result({"dataset": opened.url, "images": [shown.facts() for shown in images], "sheet": out})


def line(shown: "Shown") -> str:
    """Return what is known of one image as one line."""
    facts = shown.facts()
    parts = [f"idx {facts['idx']}", str(facts["name"] or ""), shown.split, shown.label]
    parts += [f'"{caption}"' for caption in shown.row.text if caption != shown.label]
    parts += [f"{facts['width']} x {facts['height']} px", f"sha256 {str(facts['sha256'])[:12]}"]
    return escape("  ".join(" ".join(part.split()) for part in parts if part))


def drawn(picture: "Image.Image") -> Text:
    """Return a small copy of a picture in half blocks: a character shows two pixels, one above the other."""
    small = picture.resize((DRAWN_PX, DRAWN_PX)).convert("RGB")
    text = Text()
    for top in range(0, DRAWN_PX, 2):
        for left in range(DRAWN_PX):
            upper, lower = (small.getpixel((left, row)) for row in (top, top + 1))
            text.append("\u2580", style=f"rgb{upper} on rgb{lower}".replace(" ", "").replace(")on", ") on "))
        text.append("\n")
    return text
