"""Small reports, a string that tries to break out of its place, and a parser of pages."""

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from mucs_ray.report.document import (
    Answer,
    Cell,
    Curve,
    Density,
    Evaluation,
    Grid,
    GridCell,
    GridRow,
    Histogram,
    ItemSection,
    Picture,
    RankedImage,
    Report,
    Table,
    Unlearning,
)

EVIL = '"><script>alert("x")</script><img src=http://evil.example/x onerror=\'y\'>{{ 7*7 }}</title></svg>'

UNLEARNING = Unlearning(
    steps=3,
    outcome="reached",
    seconds=6.24,
    null_loss=1.0,
    target=0.95,
    item_loss=(0.0, 0.5, 1.0),
    train_loss=(0.1, 0.1, 0.1),
)
HISTOGRAM = Histogram(edges=(-0.1, 0.0, 0.1, 0.2), counts=(50, 1000, 7), top_k_score=0.15)
DENSITY = Density(
    metric="SSIM",
    curves=(
        Curve(label="random", x=(0.0, 0.5, 1.0), y=(0.0, 2.0, 1.0), mean=0.75, reference=True),
        Curve(label="MUCS", x=(0.0, 0.25, 0.5), y=(0.0, 4.0, 0.0), mean=0.25),
    ),
)
TABLE = Table(
    key="auc",
    title="Separation",
    note="0.5 = no effect",
    columns=("method", "SSIM", "kind"),
    rows=(
        (Cell(text="random", note="the reference"), Cell(text="0.500"), Cell(text="n/a")),
        (Cell(text="MUCS"), Cell(text="0.840*", strong=True, note="0.78 to 0.90"), Cell(text="unlearns")),
    ),
)


def picture(seed: int, height: int = 16, width: int = 16) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def ranked_image(rank: int, label: str, text: str, image: Picture) -> RankedImage:
    return RankedImage(
        rank=rank, idx=40 + rank, score=0.5 / rank - 0.07, label=label, text=text, name=f"set/{text}.png", image=image
    )


def answer(
    seed: int = 100, *, method: str = "MUCS", ranked: int = 12, label: str = "red apple", text: str = "an apple"
) -> Answer:
    return Answer(
        method=method,
        ranked=tuple(ranked_image(rank, label, text, picture(seed + rank)) for rank in range(1, ranked + 1)),
        unlearning=UNLEARNING,
        histogram=HISTOGRAM,
    )


def section(
    number: int = 1,
    *,
    methods: tuple[str, ...] = ("MUCS",),
    ranked: int = 12,
    label: str = "red apple",
    text: str = "an apple",
) -> ItemSection:
    return ItemSection(
        number=number,
        idx=700 + number,
        label=label,
        image=picture(1000 + number),
        answers=tuple(answer(100 * number, method=method, ranked=ranked, label=label, text=text) for method in methods),
    )


def grid(*labels: str, images: int = 3, note: str = "459 of 1,715 removed") -> Grid:
    rows = [
        GridRow(
            label=label,
            note=note,
            cells=tuple(GridCell(image=picture(9000 + 50 * at + i), note=f"{label} {i}") for i in range(images)),
        )
        for at, label in enumerate(labels)
    ]
    return Grid(title="Before and after", rows=tuple(rows))


def evaluation(**changes: object) -> Evaluation:
    parts: dict[str, object] = {
        "mode": "union",
        "headline": "Without them 84 % of the images changed more.",
        "procedure": "They were trained away.",
        "remarks": ("One seed only.", "CLIP was left out."),
        "tables": (TABLE,),
        "densities": (DENSITY,),
        "grids": (grid("reference", "random", "MUCS"),),
    }
    return Evaluation(**(parts | changes))  # pyright: ignore[reportArgumentType]


def report(*items: ItemSection, **changes: object) -> Report:
    parts: dict[str, object] = {
        "title": "a run",
        "subtitle": "one line on it",
        "methods": (("MUCS", "mirrored unlearning"),),
        "top_k": 100,
        "num_training_images": 1057,
        "facts": (("recipe", "tiny"), ("images/s", "8,410")),
        "stages": (("train", "4 min"),),
        "items": items or (section(),),
    }
    return Report(**(parts | changes))  # pyright: ignore[reportArgumentType]


def evil_evaluation() -> Evaluation:
    cell = Cell(text=EVIL, strong=True, note=EVIL)
    table = Table(key=EVIL, title=EVIL, note=EVIL, columns=(EVIL, EVIL), rows=((cell, cell), (cell, cell)))
    curves = tuple(
        Curve(label=EVIL + tail, x=(0.0, 1.0), y=(1.0, 2.0), mean=0.5, reference=not tail) for tail in ("", ".")
    )
    row = GridRow(label=EVIL, note=EVIL, cells=(GridCell(image=picture(1), note=EVIL),))
    return Evaluation(
        mode=EVIL,
        headline=EVIL,
        procedure=EVIL,
        remarks=(EVIL,),
        tables=(table, table),
        densities=(Density(metric=EVIL, curves=curves),),
        grids=(Grid(title=EVIL, rows=(row, row)),),
    )


class Page(HTMLParser):
    """A parsed page: all start tags with attributes, and the text outside style sheets."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def defined(html: str) -> dict[str, Picture]:
    """Return the pictures of the sheet at the end, by name."""
    sheet = re.findall(
        r'<symbol id="([^"]+)" viewBox="0 0 (\d+) (\d+)"><image width="(\d+)" height="(\d+)" '
        r'href="data:image/png;base64,([^"]+)"/></symbol>',
        html,
    )
    pictures_by_name = {}
    for name, *sizes, uri in sheet:
        image = Image.open(io.BytesIO(base64.b64decode(unescape(uri))))
        assert image.mode == "RGB"
        assert sizes == [str(length) for length in image.size] * 2
        pictures_by_name[name] = np.moveaxis(np.asarray(image), -1, 0)
    assert len(pictures_by_name) == len(sheet) == html.count("<image ")
    return pictures_by_name


def pictures(html: str) -> list[Picture]:
    """Return the pictures in the order in which they are shown."""
    sheet = defined(html)
    return [sheet[name] for name in re.findall(r'<use href="#([^"]+)"/>', html)]


def holds(shown: list[Picture], expected: Picture) -> bool:
    return any(image.shape == expected.shape and bool((image == expected).all()) for image in shown)
