"""The commands `mucs-ray data ...`, which prepare a training set and show its images."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mucs_ray.cli.options import AddressOption, JsonOption, VerboseOption
from mucs_ray.cli.terminal import terminal
from mucs_ray.data.understood import lines

if TYPE_CHECKING:
    from PIL import Image

    from mucs_ray.data.show import Shown

DRAWN_PX = 24
"""The side of an image in the terminal, where a character is one pixel wide and two high."""

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare and look at training sets.")


@data_app.command("prepare")
def data_prepare(
    name: Annotated[
        str, typer.Argument(help="emoji, cifar10, artbench10, coco, unlearncanvas, folder, parquet or webdataset.")
    ],
    source: Annotated[str | None, typer.Option("--source", help="Where the original files are.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="URL to write to [default: data/NAME].")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Shorter side in pixels.")] = None,
    rows_per_unit: Annotated[
        int | None, typer.Option("--rows-per-unit", min=1, help="Images in a unit of work [default: 256].")
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option("--image-column", help="The column of file names or images, where it has another name."),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", help='The column of captions; "none": no captions.')
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help='The column of labels; "none": no labels.')
    ] = None,
    keep_text: Annotated[
        bool,
        typer.Option("--keep-text", help="Keep captions as text, for pipelines with text encoders of their own."),
    ] = False,
    group_column: Annotated[
        str | None,
        typer.Option("--group-column", help="A column to make groups by, such as the artist; several with commas."),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Read soft links that lead out of the source, or to folders.")
    ] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a training set in the canonical form, Parquet shards and a card, and say what was understood."""
    with terminal(as_json=as_json) as output:
        from mucs_ray.data.sources import Choices
        from mucs_ray.run.resolve import prepare_data

        choices = Choices(
            image_column=image_column,
            text_column=text_column,
            label_column=label_column,
            keep_text=keep_text,
            group_column=group_column,
            follow_links=follow_links,
        )
        prepared = prepare_data(
            name,
            source,
            out or f"data/{name}",
            size,
            choices=choices,
            rows_per_unit=rows_per_unit,
            console=output.console,
            address=address,
            verbose=verbose,
        )
        card = prepared.card
        counts = {split: card.num_images(split) for split in ("train", "test")}
        output.console.print(
            escape(
                f"{prepared.url}: {counts['train']:,} train, {counts['test']:,} test images of {card.size} px,"
                f" condition {card.condition} {card.condition_dim or ''}, {card.num_rejected} rejected"
            ),
            highlight=False,
            soft_wrap=True,
        )
        show_understood(output.console, card.understood)
        summary = {"url": prepared.url, "counts": counts, "rejected": card.num_rejected, "size": card.size}
        output.result({**summary, "understood": card.understood})


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


def show_understood(console: Console, understood: Mapping[str, Any]) -> None:
    """Print a table of how a preparation has read the files of the source."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for subject, reading in lines(understood):
        table.add_row(subject, Text(reading))
    console.print(table)


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
