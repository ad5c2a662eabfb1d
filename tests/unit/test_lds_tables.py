"""The report's section on the linear datamodeling score, by numbers that are easy to see."""

from dataclasses import replace

from mucs_ray.cli.terminal import lds_table
from mucs_ray.evaluation.lds import LOSS, Lds, MethodScores, Score, SubsetScores
from mucs_ray.report.html import render
from mucs_ray.report.lds_tables import lds_section
from report_samples import report

LABELS = {"mucs": "MUCS", "das": "DAS"}


def score(mean: float) -> Score:
    return Score(mean=mean, low=mean - 0.1, high=mean + 0.1)


def kind(name: str, **changes: object) -> SubsetScores:
    methods = [
        MethodScores(
            method="mucs",
            scores={"ssim": score(0.25), LOSS: score(-0.05)},
            differences={"ssim": score(-0.05), LOSS: score(0.05)},
        ),
        MethodScores(method="das", scores={"ssim": score(0.3), LOSS: score(-0.1)}, differences={}),
    ]
    values = {"methods": methods, "unchanged": {"ssim": 2, LOSS: 0}, "repeats": 0, "ceiling": {}, **changes}
    return SubsetScores(kind=name, subsets=64 if name == "all" else 32, **values)  # pyright: ignore[reportArgumentType]


SCORES = Lds(
    items=20,
    versus="das",
    names=["ssim", LOSS],
    kinds=[kind("all", repeats=8, ceiling={"ssim": 0.6, LOSS: 1.0}), kind("uniform"), kind("blocks")],
)


def texts(rows: tuple[tuple, ...]) -> list[list[str]]:
    return [[cell.text for cell in row] for row in rows]


def test_the_tables_in_order():
    section = lds_section(SCORES, LABELS)
    main, difference, kinds = section.tables
    assert main.columns == ("Method", "SSIM", "−loss")
    assert texts(main.rows) == [
        ["MUCS", ".250", "−.050"],
        ["DAS", ".300", "−.100"],
        ["a second training", ".600", "1.000"],
    ]
    assert [cell.strong for row in main.rows for cell in row[1:]] == [False, True, True, False, False, False]
    assert main.rows[0][1].note == ".150 to .350" and "over 64 subsets" in main.note
    assert "no subset changed them: 2 by SSIM." in main.note and "the same 8 subsets" in main.note
    assert difference.title == "LDS less that of DAS" and texts(difference.rows) == [["MUCS", "−.050", ".050"]]
    assert kinds.columns == ("Method", "uniform, SSIM", "uniform, −loss", "blocks, SSIM", "blocks, −loss")


def test_the_headline():
    expected = (
        "DAS predicts best what training on a part of the images does to the generated images (by SSIM): LDS .300"
        " (.200 to .400); next is MUCS with .250; a second training of the same subsets has .600."
    )
    assert lds_section(SCORES, LABELS).headline == expected


def test_a_best_method_that_may_be_chance_is_called_so():
    methods = [MethodScores(method="mucs", scores={"ssim": score(0.1), LOSS: score(0.9)}, differences={})]
    section = lds_section(replace(SCORES, kinds=[kind("all", methods=methods)], versus="mucs"), LABELS)
    assert section.headline.endswith(" better than chance; MUCS has LDS .100 (.000 to .200).")


def test_images_that_nothing_changes():
    same = kind(
        "all", unchanged={"ssim": 20, LOSS: 20}, methods=[MethodScores(method="mucs", scores={}, differences={})]
    )
    section = lds_section(replace(SCORES, kinds=[same], versus="mucs"), LABELS)
    assert section.headline == "No training on a part of the images changed any of the 20 generated images."
    assert [table.key for table in section.tables] == ["lds"]


def test_the_section_is_on_the_page_and_in_the_terminal():
    page = render(replace(report(), lds=lds_section(SCORES, LABELS)))
    assert 'id="table-lds-difference"' in page and "Do the scores predict other trainings?" in page
    assert 'id="lds"' not in render(report())
    table = lds_table(SCORES)
    assert list(table.columns[1].cells) == ["0.250 (0.15 to 0.35)", "0.300 (0.20 to 0.40)"]
