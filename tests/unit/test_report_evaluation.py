import itertools
import re
from dataclasses import replace
from html import unescape

import pytest

from mucs_ray.report.document import Cell
from mucs_ray.report.html import render
from report_samples import (
    DENSITY,
    EVIL,
    TABLE,
    Page,
    evaluation,
    evil_evaluation,
    grid,
    holds,
    picture,
    pictures,
    report,
    section,
)


def cells(html: str) -> list[list[list[str]]]:
    """Return the texts of each row of each table of numbers."""
    return [
        [
            [
                unescape(re.sub(r"<[^>]+>", "|", cell)).strip("|")
                for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.S)
            ]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)
        ]
        for table in re.findall(r'<table class="numbers">(.*?)</table>', html, re.S)
    ]


def test_foreign_text_is_inert_in_the_evaluation() -> None:
    """Every field is shown somewhere, and opens no tag."""
    html = render(report(evaluations=(evil_evaluation(),)))
    page = Page(html)
    assert "<script" not in html.lower() and "<img" not in html.lower()
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    # headline, procedure, remark, two tables of title, note, 2 heads, 4 texts and 4 notes; metric, 2 legends, 3 + 2 + 2
    # times in the drawing; title of the grid, 2 labels with notes, 2 notes under images
    texts = "".join(page.texts)
    assert texts.count(EVIL) == 3 + 2 * 12 + 3 + 7 + 7
    shown = [value for _, attributes in page.tags for value in attributes.values() if value and EVIL in value]
    assert len(shown) == 2 + 2 + 1 + 2


def test_without_an_evaluation_there_is_no_section_of_it() -> None:
    html = render(report())
    assert "Did removing them change the image?" not in html and 'class="evaluation"' not in html


def test_the_evaluation_stands_between_header_and_items_in_reading_order() -> None:
    tables = (TABLE, replace(TABLE, key="cost", title="Cost"))
    html = render(report(section(1), section(2), evaluations=(evaluation(tables=tables),)))
    order = [
        "</header>",
        "Did removing them change the image?",
        "Without them 84 % of the images changed more.",
        "<h3>Separation</h3>",
        "<h4>SSIM</h4>",
        "<h3>Before and after</h3>",
        "<h3>Cost</h3>",
        "<li>One seed only.</li>",
        "<li>CLIP was left out.</li>",
        'id="item-1"',
    ]
    places = [html.index(part) for part in order]
    assert places == sorted(places)


def test_parts_of_an_evaluation_may_be_missing() -> None:
    html = render(report(evaluations=(evaluation(remarks=(), tables=(), densities=(), grids=()),)))
    assert "Without them 84 % of the images changed more." in html
    assert "<h3>Remarks" not in html and 'class="numbers"' not in html and 'class="legend"' not in html


def test_cells_are_there_in_order() -> None:
    other = replace(TABLE, key="cost", columns=("a", "b"), rows=((Cell(text="x"), Cell(text="1")),))
    first, second = cells(render(report(evaluations=(evaluation(tables=(TABLE, other)),))))
    assert first == [
        ["method", "SSIM", "kind"],
        ["random|the reference", "0.500", "n/a"],
        ["MUCS", "0.840|*|||0.78 to 0.90", "unlearns"],
    ]
    assert second == [["a", "b"], ["x", "1"]]


def test_the_best_is_strong_and_notes_are_small() -> None:
    html = render(report(evaluations=(evaluation(),)))
    assert '<strong>0.840<span class="mark">*</span></strong><span class="note">0.78 to 0.90</span></td>' in html
    assert html.count("<strong>0.") == 1
    assert "0.5 = no effect" in Page(html).texts


def test_parts_of_a_note_have_a_line_each() -> None:
    cell = Cell(text=".840", note=".612 to .801 · p = .017 · paper .889*")
    html = render(report(evaluations=(evaluation(tables=(replace(TABLE, rows=((Cell(text="MUCS"), cell, cell),)),)),)))
    for part in (".612 to .801", "p = .017", "paper .889*"):
        assert html.count(f'<span class="note">{part}</span>') == 2


def test_numbers_stand_right_and_words_left() -> None:
    """A column is of numbers if its head and all its cells are to the right."""
    texts = (("1", "<0.1 s", "\u221213.5 ± 2.1", ".500", "one", ""), ("n/a", "2 min", "", "—", "2", ""))
    rows = tuple((Cell(text="1"), *(Cell(text=text) for text in row)) for row in texts)
    table = replace(TABLE, columns=("m", "a", "b", "c", "d", "e", "f"), rows=rows)
    html = render(report(evaluations=(evaluation(tables=(table,)),)))
    for row in re.findall(r"<tr>(.*?)</tr>", html[html.index('class="numbers"') :], re.S)[:3]:
        right = ['class="right' in tag for tag in re.findall(r"<t[hd][ >][^>]*>?", row)]
        assert right == [False, True, True, True, True, False, False]


@pytest.mark.parametrize(
    ("images", "bands"), [(1, [1]), (8, [8]), (10, [10]), (11, [6, 6]), (20, [10, 10]), (21, [7, 7, 7])]
)
def test_columns_of_a_grid_are_aligned(images: int, bands: list[int]) -> None:
    """All rows of all bands have equally many places, and no image leaves its column."""
    shown = grid("reference", "random", "MUCS", images=images)
    html = render(report(evaluations=(evaluation(grids=(shown,)),)))
    tables = re.findall(r'<table class="pictures">(.*?)</table>', html, re.S)
    rows = [re.findall(r"<tr>(.*?)</tr>", table, re.S) for table in tables]
    assert [[len(re.findall("<td", row)) for row in band] for band in rows] == [[width] * 3 for width in bands]
    for at, one in enumerate(shown.rows):
        notes = [re.findall(r'</div><span class="note">(.*?)</span></td>', band[at]) for band in rows]
        assert list(itertools.chain(*notes)) == [cell.note for cell in one.cells]
        assert all(
            f'<th scope="row">{one.label}<span class="note">459 of 1,715 removed</span>' in band[at] for band in rows
        )
    assert all(holds(pictures(html), cell.image) for one in shown.rows for cell in one.cells)


def test_a_row_with_missing_images_keeps_its_columns() -> None:
    whole = grid("reference", "MUCS", images=3)
    short = replace(whole, rows=(whole.rows[0], replace(whole.rows[1], cells=whole.rows[1].cells[:1])))
    html = render(report(evaluations=(evaluation(grids=(short, replace(short, rows=()))),)))
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.index('class="pictures"') :], re.S)
    assert [row.count("<td") for row in rows[:2]] == [3, 3] and rows[1].count("<td></td>") == 2


def test_large_pictures_are_small_in_a_grid() -> None:
    whole = grid("reference", "MUCS", images=1)
    large = tuple(replace(row, cells=(replace(row.cells[0], image=picture(3, 256, 200)),)) for row in whole.rows)
    html = render(report(evaluations=(evaluation(grids=(replace(whole, rows=large),)),)))
    assert max(max(image.shape) for image in pictures(html)) == 128


def test_one_legend_and_a_figure_a_metric() -> None:
    metrics = ("SSIM", "CLIP", "LPIPS")
    html = render(report(evaluations=(evaluation(densities=tuple(replace(DENSITY, metric=name) for name in metrics)),)))
    assert re.findall(r"<h4>(.*?)</h4>", html) == list(metrics)
    legend = re.search(r'<ul class="legend">(.*?)</ul>', html, re.S)
    assert legend is not None
    assert re.findall(r'class="curve (\w+)"/></svg> (\w+)</li>', legend.group(1)) == [
        ("reference", "random"),
        ("c1", "MUCS"),
    ]


@pytest.mark.parametrize(("columns", "note", "wide"), [(3, "", False), (9, "", True), (3, "paper 0.1 · " * 9, False)])
def test_only_a_wide_table_takes_the_whole_width(columns: int, note: str, wide: bool) -> None:
    row = (Cell(text="MUCS"), *(Cell(text="0.840", note=note) for _ in range(columns - 1)))
    table = replace(TABLE, columns=("m",) * columns, rows=(row,))
    html = render(report(evaluations=(evaluation(tables=(TABLE, table)),)))
    assert ('class="table wide"' in html) == wide
