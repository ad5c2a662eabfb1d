"""An answer as a notebook shows it: HTML without scripts or styles of the page around it."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from mucs_ray.spaces.pictures import as_image

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
        cells = [cell(answer.image(number), query)]
        for row in top:
            if row["query"] == query:
                training = as_image(rows[row["idx"]].image)
                named = row["name"] or row["text"] or row["label"] or f"idx {row['idx']}"
                cells.append(cell(training, f"{row['score']:.3f}", title=f"{named}, idx {row['idx']}"))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = len(answer.queries) - len(shown)
    rest = f" {more} more pictures are in the report." if more > 0 else ""
    caption = (
        f"Training images with the highest scores by {escape(method)}, for the picture on the left. Higher is more"
        f" influential.{rest} Report: {escape(answer.report)}"
    )
    return f'<table style="border-spacing:6px">{"".join(lines)}</table><p style="font-size:smaller">{caption}</p>'


def cell(image: Image.Image, text: str, *, title: str = "") -> str:
    """Return one picture with a line of text under it."""
    buffer = io.BytesIO()
    small = image.copy()
    small.thumbnail((2 * SIDE_PX, 2 * SIDE_PX))
    small.save(buffer, format="PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    style = f"width:{SIDE_PX}px;image-rendering:{'pixelated' if max(image.size) < SIDE_PX else 'auto'}"
    told = escape(title or text)
    picture = f'<img src="{uri}" style="{style}" alt="{told}" title="{told}">'
    return f'<td style="text-align:center;font-size:smaller">{picture}<br>{escape(text[-24:])}</td>'
