"""The report's section on groups, by numbers that are easy to see."""

from dataclasses import replace
from typing import Any

import pytest

from mucs_ray.evaluation.group_agreement import Summary
from mucs_ray.evaluation.group_metrics import HEADLINE
from mucs_ray.evaluation.shares import GroupShare, QueryShares
from mucs_ray.report.document import GroupPictures, GroupSection, ScoreMatrix, ShareBar, SharedImage
from mucs_ray.report.group_plots import BAR_LEFT, BAR_RIGHT, score_shades, share_bars
from mucs_ray.report.group_tables import (
    Compared,
    agreement_table,
    bars_of,
    headline,
    no_better_than_control,
    remarks,
)
from mucs_ray.report.html import render
from report_samples import EVIL, Page, picture, pictures, report

LABELS = {"mucs": "MUCS", "das": "DAS"}


def summaries(mean: float, chance: float = 0.25) -> dict[str, Summary]:
    return {
        metric: Summary(
            metric=metric, mean=mean, median=mean, sd=0.1, interval=(mean - 0.1, mean + 0.1), chance=chance, num=8,
            undefined=0,
        )
        for metric in HEADLINE
    }  # fmt: skip


COMPARED = Compared(
    reference="retrained",
    repeated="retrained-repeat",
    unlearners=("zero", "retrack", "retain-only"),
    methods={
        "retrained-repeat": summaries(0.9),
        "zero": summaries(0.3),
        "retrack": summaries(0.7),
        "retain-only": summaries(0.4),
        "mucs, sum": summaries(0.5),
        "mucs, mean": summaries(0.6),
        "das, sum": summaries(0.2),
    },
    num_images=8,
)
CLEAR = QueryShares(
    query=0,
    shares=tuple(
        GroupShare(group=name, share=share, low=share / 2, high=share + 0.1, score=share)
        for name, share in (("a", 0.5), ("b", 0.2), ("c", 0.1), ("d", 0.1), ("e", 0.06), ("f", 0.03), ("g", 0.01))
    ),
    standard_error=0.1,
    floor=0.2,
)
NOBODY = QueryShares(query=1, shares=(), standard_error=0.1, floor=0.2)


def test_the_table_has_unlearners_the_best_sums_the_other_trainings_and_chance():
    table = agreement_table(COMPARED, LABELS)
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        ("unlearning, zero", ".300"), ("unlearning, retrack", ".700"), ("unlearning, retain-only", ".400"),
        ("MUCS, mean", ".600"), ("DAS, sum", ".200"), ("trainings with another seed", ".900"), ("chance", ".250"),
    ]  # fmt: skip
    assert [row[1].strong for row in table.rows] == [False, True, *[False] * 5]
    assert table.rows[1][1].note == ".600 to .800" and "favours it" in table.note
    alone = replace(COMPARED, methods={"zero": summaries(0.3)}, repeated=None)
    assert "favours" not in agreement_table(alone, LABELS).note and len(agreement_table(alone, LABELS).rows) == 2


def test_the_headline_names_the_best_method_only_if_it_is_better_than_chance():
    found = headline(COMPARED, [CLEAR, NOBODY], LABELS)
    assert found == (
        "In 1 of 2 generated images a group stands out. Of all methods, unlearning, retrack names the first group of"
        " the trainings most often: in 70\u00a0% of the images, trainings with another seed in 90\u00a0%, chance in"
        " 25\u00a0%."
    )
    by_chance = replace(COMPARED, methods={"zero": summaries(0.3)}, repeated=None)
    assert headline(by_chance, [], LABELS).startswith("No method is shown to name the first group")
    assert "without a training" in headline(None, [], LABELS)


def test_unlearners_that_do_not_beat_the_control_are_told():
    assert no_better_than_control(COMPARED) == ["zero"]
    clean: dict[str, Any] = {"overlapping": False, "ungrouped": 0, "misplaced": 0.0, "shares_by": "retrained"}
    (weak,) = remarks(COMPARED, **clean)
    assert weak.startswith("Unlearning by zero agrees no better") and "retain-only" in weak
    told = " ".join(remarks(None, overlapping=True, ungrouped=1, misplaced=0.05, shares_by=""))
    for words in (
        "in several groups",
        "1 training image in no group",
        "5\u00a0%",
        "groups.golds=1",
        "groups.noise_sets=2",
    ):
        assert words in told


def test_an_image_has_bars_for_its_largest_shares_and_a_bound_for_the_others():
    bars, rest = bars_of(CLEAR)
    assert [bar.group for bar in bars] == ["a", "b", "c", "d", "e"] and bars[0].low == 0.25
    assert rest == "2 more groups have each 13\u00a0% at most"
    assert bars_of(NOBODY) == ((), "")


def number(text: str | None) -> float:
    return float(text or "nan")


def test_a_bar_ends_at_its_share_and_its_line_at_the_ends_of_the_interval():
    page = Page(share_bars([ShareBar(group="a", share=0.5, low=0.25, high=1.0)], title="t"))
    width = BAR_RIGHT - BAR_LEFT
    bar = next(attributes for tag, attributes in page.tags if attributes.get("class") == "tail")
    lines = [attributes for tag, attributes in page.tags if tag == "line"]
    assert (number(bar["x"]), number(bar["width"])) == (BAR_LEFT, width / 2)
    assert (number(lines[0]["x1"]), number(lines[0]["x2"])) == (BAR_LEFT + width / 4, BAR_RIGHT)
    assert "50\u00a0% (25 to 100)" in "".join(page.texts)


def test_shades_are_in_units_of_the_largest_score_of_the_row():
    matrix = ScoreMatrix(title="m", groups=("a", "b", "c"), scores=((2.0, 1.0, None), (-4.0, 0.0, 1.0)))
    page = Page(score_shades(matrix, title="t"))
    cells = [(attributes["class"], attributes.get("fill-opacity")) for tag, attributes in page.tags if tag == "rect"]
    assert cells == [
        ("above", "1.00"), ("above", "0.50"), ("absent", None), ("below", "1.00"), ("above", "0.00"), ("above", "0.25"),
    ]  # fmt: skip
    assert "image 0, c: no score" in page.texts and "image 1, a: \u22124" in page.texts


@pytest.mark.parametrize("num", [1, 40, 300])
def test_any_number_of_groups_and_images_is_drawn(num: int):
    names = tuple(f"group {number}" for number in range(num))
    matrix = ScoreMatrix(title="m", groups=names, scores=tuple(tuple([0.0] * num) for _ in range(num)))
    page = Page(score_shades(matrix, title="t"))
    assert sum(tag == "rect" for tag, _ in page.tags) == num * num


def section(name: str = "a") -> GroupSection:
    bars = (ShareBar(group=name, share=1.0, low=0.5, high=1.0),)
    return GroupSection(
        headline=name,
        by=name,
        remarks=(name,),
        groups=(GroupPictures(name=name, size=1, images=(picture(1),)), GroupPictures(name="b", size=20, images=())),
        shares_by=name,
        images=(
            SharedImage(number=0, label=name, image=picture(2), bars=bars, rest=name),
            SharedImage(number=1, label="", image=picture(3), bars=()),
        ),
        matrices=(ScoreMatrix(title=name, groups=(name, "b"), scores=((1.0, -1.0), (0.5, None))),),
        table=agreement_table(COMPARED, {**LABELS, "mucs": name}),
    )


def test_the_section_stands_in_the_page():
    html = render(report(groups=section()))
    page = Page(html)
    assert 'id="groups"' in html and "Nobody in particular" in html and "20 images" in html and "1 image<" in html
    assert "It is no probability" in html
    assert all(
        any((shown == image).all() for shown in pictures(html)) for image in (picture(1), picture(2), picture(3))
    )
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert 'id="groups"' not in render(report())


def test_foreign_names_of_groups_are_inert():
    html = render(report(groups=section(EVIL)))
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "img", "iframe", "link"} & set(names) and "<script" not in html.lower()
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert EVIL in "".join(page.texts)
