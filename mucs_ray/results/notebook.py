"""An answer as a notebook shows it: HTML without scripts or styles of the page around it."""

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from mucs_ray.report.document import Picture
from mucs_ray.report.pictures import png_data_uri, thumbnail

if TYPE_CHECKING:
    from mucs_ray.results.answer import Answer

SHOWN_QUERIES, SHOWN_TOP, SIDE_PX = 8, 8, 72


def html(answer: "Answer") -> str:
    """Return a table with a row for each of the first pictures: the picture, and its top training images by score."""
    method = answer.methods[0]
    shown = answer.queries[:SHOWN_QUERIES]
    top = answer.top(SHOWN_TOP, method=method).to_pylist()
    rows = answer.dataset.find({row["idx"] for row in top if row["query"] in shown}, "train")
    lines = []
    for number, query in enumerate(shown):
        cells = [cell(np.moveaxis(np.asarray(answer.image(number)), -1, 0), query)]
        for row in top:
            if row["query"] == query:
                training = rows[row["idx"]].image
                named = row["name"] or row["text"] or row["label"] or f"idx {row['idx']}"
                cells.append(cell(training, f"{row['score']:.3f}", title=f"{named}, idx {row['idx']}"))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = len(answer.queries) - len(shown)
    rest = f" {more} more pictures are in the report." if more > 0 else ""
    caption = (
        f"Training images with the highest scores by {escape(method)}, for the picture on the left. Higher is more"
        f" influential.{rest} Report: {escape(answer.report)}"
    )
    warned = "".join(f"<p><b>Warning.</b> {escape(warning)}.</p>" for warning in answer.warnings)
    return (
        f'{warned}<table style="border-spacing:6px">{"".join(lines)}</table><p style="font-size:smaller">{caption}</p>'
    )


def cell(picture: Picture, text: str, *, title: str = "") -> str:
    """Return one picture with a line of text under it."""
    rendering = "pixelated" if max(picture.shape[1:]) < SIDE_PX else "auto"
    label, style = escape(title or text), f"width:{SIDE_PX}px;image-rendering:{rendering}"
    image = f'<img src="{png_data_uri(thumbnail(picture))}" style="{style}" alt="{label}" title="{label}">'
    return f'<td style="text-align:center;font-size:smaller">{image}<br>{escape(text[-24:])}</td>'
