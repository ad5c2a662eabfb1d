"""The counterfactual test as a reader sees it: tables, the sentence, curves, CSV and LaTeX; and the paper's numbers."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mucs_ray.evaluation.analysis import PAPER_METRICS, Analysis, analyse
from mucs_ray.evaluation.outcome import MethodOutcome, Unrelated
from mucs_ray.report.document import Cell, Table
from mucs_ray.report.export import to_csv, to_latex
from mucs_ray.report.published import published
from mucs_ray.report.tables import densities, headline, remarks, tables
from mucs_ray.report.wording import count, plus_minus, probability, share, signed, time_an_item

LABELS = {"mucs": "MUCS", "random": "Random", "dino": "DINO", "dtrak": "D-TRAK"}
RECIPES = ("cifar10", "artbench10", "coco")
NUM_ITEMS = 16
REMOVED = {"random": 531, "mucs": 459, "dino": 440, "abu": 180}


def outcome(method: str, seed: int, similarity: dict[str, np.ndarray], *, controls: bool = True) -> MethodOutcome:
    """Return an outcome with lists of 34 of 1,715 images; those of abu are nearly the same for all items."""
    rng = np.random.default_rng([seed, len(method)])
    of = 60 if method == "abu" else 1715
    return MethodOutcome(
        seed=seed,
        method=method,
        num_images=1715,
        removed=REMOVED.get(method, 500),
        top=np.stack([rng.permutation(of)[:34] for _ in range(NUM_ITEMS)]),
        similarity=similarity,
        controls={metric: values[:4] if controls else values[:0] for metric, values in similarity.items()},
        seconds_an_item={"random": 0.0, "mucs": 90.0}.get(method, 7.25),
    )


def lowered(
    by: dict[str, float],
    *,
    seeds: Sequence[int] = (1,),
    metrics: Sequence[str] = ("ssim", "clip"),
    controls: bool = True,
) -> list[MethodOutcome]:
    """Random removal leaves similarities of 0.4 to 0.9; each method lowers all of them by a number."""
    outcomes = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = {metric: rng.uniform(0.4, 0.9, NUM_ITEMS) for metric in metrics}
        for method, step in ({"random": 0.0} | by).items():
            similarity = {metric: values - step - (metric == "mse") for metric, values in base.items()}
            outcomes.append(outcome(method, seed, similarity, controls=controls))
    return outcomes


def analysed(by: dict[str, float], *, unrelated: bool = True, **facts) -> Analysis:
    outcomes = lowered(by, **facts)
    seeds = {measured.seed for measured in outcomes} if unrelated else ()
    pairs = {metric: np.float64([0.1, 0.2]) for metric in outcomes[0].similarity}
    return analyse(outcomes, [Unrelated(seed=seed, similarity=pairs) for seed in seeds])


def by_key(analysis: Analysis, **facts) -> dict[str, Table]:
    return {table.key: table for table in tables(analysis, method_labels=LABELS, **facts)}


def column(table: Table, name: str) -> dict[str, Cell]:
    """Return the cells of a column by the head of their row."""
    return {row[0].text: row[table.columns.index(name)] for row in table.rows}


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_tables_in_order():
    keys = ["auc", "difference", "overlap-within", "overlap-between", "cost", "controls", "reference-level"]
    all_tables = tables(analysed({"mucs": 0.2, "dino": 0.1}), method_labels=LABELS)
    assert [table.key for table in all_tables] == keys
    for table in all_tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}, table.key


@pytest.mark.parametrize(("seeds", "over"), [((1,), "one seed"), ((1, 2), "2 seeds")])
def test_each_note_says_n_the_seeds_and_what_is_better(seeds: tuple[int, ...], over: str):
    """Each seed has 16 images and 4 controls."""
    for table in tables(analysed({"mucs": 0.2, "dino": 0.1}, seeds=seeds), method_labels=LABELS):
        note = table.note.replace("\u00a0", " ")
        images = f"{4 * len(seeds)} controls" if table.key == "controls" else f"{16 * len(seeds)} generated images"
        assert f"n = {images}, {over}" in note, table.key
        assert "better" in note or "Lower is more change" in note, table.key
        assert ("no interval over seeds can be given" in note) == (len(seeds) == 1), table.key


def test_the_main_table_is_the_papers_table_1():
    auc = by_key(analysed({"mucs": 0.2}))["auc"]
    assert auc.columns == ("Method", "Removed", "SSIM", "CLIP", "mean of SSIM, CLIP")
    assert [row[0].text for row in auc.rows] == ["Random", "MUCS"]
    assert [cell.text for cell in auc.rows[0]] == ["Random", "531", ".500", ".500", ".500"]
    assert auc.rows[1][1] == Cell(text="459", note="26.8\u00a0%")
    assert "The paper's μ is over SSIM, SSCD, LPIPS and CLIP." in auc.note
    assert "No asterisks" in auc.note


def test_the_main_table_has_the_other_modes_beside():
    union = replace(analysed({"mucs": 0.2, "abu": 0.1}), mode="union")
    auc = by_key(analysed({"mucs": 0.1, "dino": 0.1}), beside=[union])["auc"]
    assert auc.columns[5:] == ("removed, union", "mean of SSIM, CLIP, union")
    assert [cell.text for cell in column(auc, "removed, union").values()] == ["531", "459", ""]
    alone = by_key(union)["auc"]
    theirs = column(alone, "mean of SSIM, CLIP")["MUCS"].text
    assert column(auc, auc.columns[-1])["MUCS"].text == theirs != column(auc, "mean of SSIM, CLIP")["MUCS"].text
    assert all(len(row) == len(auc.columns) for row in auc.rows)


def test_auc_and_p_in_a_cell():
    """One pair of 16 x 16 at a time; p is that of the analysis, in the paper's style."""
    analysis = analysed({"mucs": 0.1})
    actual = analysis.of("mucs").metrics["ssim"]
    cell = column(by_key(analysis)["auc"], "SSIM")["MUCS"]
    assert float(f"0{cell.text}") == pytest.approx(actual.auc, abs=5e-4)
    assert cell.text.startswith(".") and cell.strong
    assert cell.note == probability(actual.p or 0.0)


def test_the_interval_over_seeds_is_in_the_cell():
    analysis = analysed({"mucs": 0.1}, seeds=(1, 2, 3))
    low, high = analysis.of("mucs").metrics["ssim"].auc_interval or (0.0, 0.0)
    assert low < high
    assert column(by_key(analysis)["auc"], "SSIM")["MUCS"].note.startswith(f"{share(low)} to {share(high)} · p")
    low, high = analysis.of("mucs").mean_auc_interval or (0.0, 0.0)
    assert column(by_key(analysis)["auc"], "mean of SSIM, CLIP")["MUCS"].note == f"{share(low)} to {share(high)}"


def test_the_asterisk_and_the_bold_number_are_of_the_best():
    """The best method is first far below the next best, and then hardly below it."""
    clear = column(by_key(analysed({"dino": 0.1, "mucs": 0.9}))["auc"], "SSIM")
    assert {name: (cell.text[-1:] == "*", cell.strong) for name, cell in clear.items()} == {
        "Random": (False, False),
        "DINO": (False, False),
        "MUCS": (True, True),
    }
    close = column(by_key(analysed({"dino": 0.3, "mucs": 0.31}))["auc"], "SSIM")
    assert (close["MUCS"].strong, close["MUCS"].text[-1] == "*", close["DINO"].strong) == (True, False, False)
    worse = column(by_key(analysed({"mucs": -0.1}))["auc"], "SSIM")
    assert (worse["Random"].strong, worse["MUCS"].strong) == (True, False)


def test_the_papers_numbers_stand_beside_ours():
    analysis = analysed({"mucs": 0.2, "dino": 0.1}, metrics=(*PAPER_METRICS, "mse"))
    actual = by_key(analysis, published=published("cifar10"))
    assert actual["auc"].columns[-1] == "μ"
    assert column(actual["auc"], "SSIM")["MUCS"].note.endswith("· paper .889*")
    assert column(actual["auc"], "SSIM")["DINO"].note.endswith("· paper .633")
    assert column(actual["auc"], "μ")["MUCS"].note == "paper .897"
    assert "paper" not in column(actual["auc"], "\u2212MSE")["MUCS"].note
    assert column(actual["difference"], "SSIM")["MUCS"].note == "paper \u221213.5\u00a0±\u00a02.1"
    assert column(actual["overlap-within"], "All pairs")["MUCS"].note == "paper 2.7\u00a0±\u00a00.2"
    assert column(actual["cost"], "Time an image")["Random"].note == "paper <0.1\u00a0min"
    assert (
        column(by_key(analysis, published=published("artbench10"))["overlap-between"], "DINO")["MUCS"].note
        == "paper 14.6"
    )
    assert not any("paper " in cell.note for table in by_key(analysis).values() for row in table.rows for cell in row)


def test_the_papers_mean_is_not_beside_a_mean_of_other_metrics():
    actual = by_key(analysed({"mucs": 0.2}), published=published("cifar10"))
    assert "paper" in column(actual["auc"], "SSIM")["MUCS"].note
    assert column(actual["auc"], "mean of SSIM, CLIP")["MUCS"].note == ""


def test_the_misprint_is_noted_where_it_is_shown():
    paper = published("coco")
    assert "prints a mean AUC of .718" in by_key(analysed({"dtrak": 0.2}), published=paper)["auc"].note
    assert ".718" not in by_key(analysed({"mucs": 0.2}), published=paper)["auc"].note


def test_differences_are_in_percent_with_true_minus_signs_and_without_distances():
    analysis = analysed({"mucs": 0.2, "dino": 0.1}, metrics=("ssim", "mse"))
    table = by_key(analysis)["difference"]
    assert table.columns == ("Method", "SSIM")
    assert "Distances have no such percentage" in table.note
    assert "Distances" not in by_key(analysed({"mucs": 0.2}))["difference"].note
    cells, ssim = column(table, "SSIM"), analysis.of("mucs").metrics["ssim"]
    assert cells["MUCS"].text == f"\u2212{-(ssim.difference or 0):.1f}\u00a0±\u00a0{ssim.difference_half_width:.1f}"
    assert (cells["MUCS"].strong, cells["DINO"].strong, "Random" in cells) == (True, False, False)
    assert "difference" not in by_key(analysed({"mucs": 0.2}, metrics=("mse",)))


def test_overlaps():
    analysis = analysed({"mucs": 0.2, "abu": 0.0}, seeds=(1, 2))
    actual = by_key(analysis)
    assert actual["overlap-within"].columns == ("Method", "All pairs", "Same seed")
    assert "2.0\u00a0%" in actual["overlap-within"].note  # 34 of 1,715
    overlap = analysis.of("abu").within_overlap
    assert overlap is not None
    assert column(actual["overlap-within"], "All pairs")["abu"].text == plus_minus(overlap.mean, overlap.half_width)
    assert "No table of overlaps" not in actual["overlap-within"].note


def test_overlap_between_is_a_triangle():
    """Three methods take two rows: the first against two, the second against one."""
    analysis = analysed({"mucs": 0.2, "dino": 0.1, "abu": 0.0})
    table = by_key(analysis)["overlap-between"]
    assert table.columns == ("Method", "DINO", "abu")
    percents = {(pair.a, pair.b): signed(pair.percent) for pair in analysis.between}
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["MUCS", percents["mucs", "dino"], percents["mucs", "abu"]],
        ["DINO", "", percents["dino", "abu"]],
    ]


def test_a_table_without_anything_to_compare_is_left_out_and_that_is_said():
    one = by_key(analysed({"mucs": 0.2}, controls=False, unrelated=False))
    assert list(one) == ["auc", "difference", "overlap-within", "cost"]
    assert "No table of overlaps between methods: there is one method besides random" in one["overlap-within"].note
    none = by_key(analysed({}, unrelated=False))
    assert list(none) == ["overlap-within", "cost"]
    assert "there is no method besides random" in none["overlap-within"].note


def test_controls_and_levels():
    analysis = analysed({"mucs": 0.9}, metrics=("ssim", "mse"))
    actual = by_key(analysis)
    control = analysis.of("mucs").controls["ssim"]
    assert column(actual["controls"], "SSIM") == {"MUCS": Cell(text="1.000", note=probability(control.p))}
    levels = column(actual["reference-level"], "\u2212MSE")
    assert levels["Unrelated images"].text == "0.150"
    assert levels["MUCS"].text == signed(analysis.of("mucs").metrics["mse"].mean, 3)
    assert levels["MUCS"].text.startswith("\u2212")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (share(0.8894), ".889"),
        (share(0.99996), "1.000"),
        (share(0.0), ".000"),
        (signed(-13.46), "\u221213.5"),
        (signed(-0.04), "0.0"),
        (plus_minus(-2.0, None), "\u22122.0"),
        (probability(0.0171), "p\u00a0=\u00a0.017"),
        (probability(0.0171, leading_zero=True), "p\u00a0=\u00a00.017"),
        (probability(0.634), "p\u00a0=\u00a0.63"),
        (probability(1.0), "p\u00a0=\u00a01.00"),
        (probability(1e-9), "p\u00a0<\u00a0.001"),
        (time_an_item(0.01), "<0.1\u00a0s"),
        (time_an_item(7.25), "7.2\u00a0s"),
        (time_an_item(1368), "22.8\u00a0min"),
        (count([1714, 1716]), "1,715"),
    ],
)
def test_numbers_as_the_paper_prints_them(text: str, expected: str):
    assert text == expected


# --- words ----------------------------------------------------------------------------------------------------------


def test_the_sentence_when_the_method_works():
    analysis = analysed({"mucs": 0.2}, metrics=("clip", "ssim", "mse"))
    ssim = analysis.of("mucs").metrics["ssim"]
    assert (ssim.p or 1) < 0.05
    p = f"p = {ssim.p:.3f}" if (ssim.p or 0) >= 0.001 else "p < 0.001"
    assert headline(analysis, method_labels=LABELS) == (
        "Removing the 459 training images that MUCS ranks highest changed the generated images more than removing 531 "
        f"random ones: AUC {ssim.auc:.2f} by SSIM ({p}, n = 16, one seed)."
    )


def test_the_sentence_when_there_is_no_clear_difference():
    unclear = headline(analysed({"mucs": 0.02}), method_labels=LABELS)
    assert "made no clear difference compared with removing 531 random ones: AUC 0.5" in unclear
    same = headline(analysed({"mucs": 0.0}), method_labels=LABELS)
    assert (
        "did not change the generated images more than removing 531 random ones: no clear difference, AUC 0.50" in same
    )
    worse = headline(analysed({"mucs": -0.3}), method_labels=LABELS)
    assert "did not change the generated images more" in worse and "they even changed less" in worse
    for sentence in (unclear, same, worse):
        assert "changed the generated images more" not in sentence


def test_the_sentence_names_the_best_of_several_and_the_seeds():
    sentence = headline(analysed({"dino": 0.1, "mucs": 0.3, "abu": 0.0}, seeds=(1, 2)), method_labels=LABELS)
    assert "Removing the 459 training images that MUCS (the best of 3 methods) ranks highest" in sentence
    assert re.search(r"95 % interval 0\.\d\d to [01]\.\d\d, n = 32, 2 seeds\)\.$", sentence)


def test_the_words_where_only_losses_were_compared():
    outcomes = lowered({"mucs": 0.3}, metrics=("skew", "loss"), controls=False)
    analysis = analyse(outcomes, [])
    text = headline(analysis, method_labels=LABELS)
    assert "raised the loss of the pictures more than removing 531 random ones: AUC" in text
    assert "by skew of the loss" in text and "generated image" not in text
    found = tables(analysis, method_labels=LABELS)
    assert [table.key for table in found] == ["auc", "overlap-within", "cost"]  # a loss falls by no percentage
    assert "the loss of a picture rises more" in found[0].note and "16 pictures, one seed" in found[0].note.replace(
        "\u00a0", " "
    )
    assert all(method.metrics["skew"].hit_rate is None for method in analysis.methods)
    assert not analyse(lowered({"mucs": 0.3}, metrics=("mse", "loss")), []).by_loss


def test_the_sentence_without_any_method():
    assert headline(analysed({}), method_labels=LABELS).startswith("Only Random was evaluated")


def test_remarks_say_how_few_seeds_there_are():
    assert "One seed" in " ".join(remarks(analysed({"mucs": 0.2}), method_labels=LABELS))
    assert "Only 2 seeds" in " ".join(remarks(analysed({"mucs": 0.2}, seeds=(1, 2)), method_labels=LABELS))
    assert remarks(analysed({"mucs": 0.2}, seeds=range(6)), method_labels=LABELS) == ()


def test_remarks_say_that_a_method_removed_much_less():
    """180 of 531 because its lists overlap; 440 and 459 are not much less."""
    actual = remarks(analysed({"mucs": 0.2, "dino": 0.1, "abu": 0.0}, seeds=range(6)), method_labels=LABELS)
    assert len(actual) == 2
    assert actual[0].startswith("The p-values of 6 tests")
    assert re.match(
        r"abu removed 180 training images, random removal 531, because its lists for different images overlap "
        r"\(5\d\.\d.%, by chance 2\.0.%\)\.",
        actual[1],
    )


# --- curves ---------------------------------------------------------------------------------------------------------


def test_curves_are_densities_over_one_range():
    """Area 1 each, one axis for all, random first and flagged, the mean that of the values."""
    outcomes = lowered({"mucs": 0.3, "dino": 0.1}, seeds=(1, 2))
    (ssim, clip) = densities(outcomes[::-1], method_labels=LABELS)
    assert (ssim.metric, clip.metric) == ("SSIM", "CLIP")
    assert (ssim.curves[0].label, ssim.curves[0].reference) == ("Random", True)
    assert {(curve.label, curve.reference) for curve in ssim.curves[1:]} == {("MUCS", False), ("DINO", False)}
    for curve in ssim.curves:
        assert (len(curve.x), curve.x) == (200, ssim.curves[0].x)
        assert np.trapezoid(curve.y, curve.x) == pytest.approx(1, abs=0.01)
        assert np.trapezoid(np.multiply(curve.x, curve.y), curve.x) == pytest.approx(curve.mean, abs=0.01)
    values = np.concatenate([measured.similarity["ssim"] for measured in outcomes if measured.method == "mucs"])
    assert next(curve.mean for curve in ssim.curves if curve.label == "MUCS") == pytest.approx(values.mean())


def test_the_bandwidth_is_a_quarter_of_the_standard_deviation():
    """Two values, -1 and 1: standard deviation sqrt(2), so the hills have a width of sqrt(2) / 4 and half the area."""
    (actual,) = densities([outcome("random", 1, {"ssim": np.float64([-1, 1])})], method_labels=LABELS)
    x, width = np.asarray(actual.curves[0].x), 2**0.5 / 4
    hills = [np.exp(-(((x - centre) / width) ** 2) / 2) / (2 * width * (2 * np.pi) ** 0.5) for centre in (-1, 1)]
    np.testing.assert_allclose(actual.curves[0].y, sum(hills), rtol=1e-9)


@pytest.mark.parametrize("constant", [[0.5] * 16, [0.5], [0.5, 0.5 + 1e-12]])
def test_equal_values_are_a_bump_at_their_place(constant: list[float]):
    """As wide as a quarter of the pool's spread: no spike that makes the other curves flat."""
    spread = lowered({})[0]
    same = replace(spread, method="mucs", similarity=dict.fromkeys(spread.similarity, np.asarray(constant)))
    random, bump = densities([spread, same], method_labels=LABELS)[0].curves
    assert bump.mean == pytest.approx(0.5)
    assert bump.x[int(np.argmax(bump.y))] == pytest.approx(0.5, abs=0.01)
    assert np.trapezoid(bump.y, bump.x) == pytest.approx(1, abs=0.01)
    assert max(bump.y) < 10 * max(random.y)


def test_equal_values_of_all_methods():
    """Nothing changed anywhere: still a curve, of area 1, at 1."""
    actual = densities([outcome("random", 1, {"ssim": np.ones(3)})], method_labels=LABELS)[0].curves[0]
    assert np.trapezoid(actual.y, actual.x) == pytest.approx(1, abs=0.01)
    assert actual.x[int(np.argmax(actual.y))] == pytest.approx(1, abs=1e-3)
    assert densities([], method_labels=LABELS) == ()


# --- files ----------------------------------------------------------------------------------------------------------


def test_csv_holds_the_numbers_at_full_precision():
    analysis = analysed({"mucs": 0.2, "dino": 0.1}, seeds=(1, 2), metrics=("ssim", "mse"))
    rows = list(csv.DictReader(io.StringIO(to_csv([analysis]))))
    row_of = {(row["method"], row["metric"], row["statistic"]): row for row in rows}
    assert len(row_of) == len(rows)
    mucs = analysis.of("mucs")
    auc = row_of["mucs", "ssim", "auc"]
    assert float(auc["value"]) == mucs.metrics["ssim"].auc
    assert (float(auc["low"]), float(auc["high"])) == mucs.metrics["ssim"].auc_interval
    assert (auc["n"], auc["seeds"], auc["removed"]) == ("32", "2", "459.0")
    fall, half_width = mucs.metrics["ssim"].difference or 0.0, mucs.metrics["ssim"].difference_half_width or 0.0
    difference = row_of["mucs", "ssim", "difference"]
    assert [float(difference[key]) for key in ("value", "low", "high")] == [fall, fall - half_width, fall + half_width]
    for statistic, value in {
        "p": mucs.metrics["ssim"].p,
        "u": mucs.metrics["ssim"].u,
        "wilcoxon_p": mucs.metrics["ssim"].wilcoxon_p,
        "hit_rate": mucs.metrics["ssim"].hit_rate,
        "similarity": mucs.metrics["ssim"].mean,
        "control_auc": mucs.controls["ssim"].auc,
        "control_p": mucs.controls["ssim"].p,
    }.items():
        assert float(row_of["mucs", "ssim", statistic]["value"]) == value
    assert float(row_of["mucs", "", "removed_share"]["value"]) == mucs.removed_share
    assert row_of["mucs", "", "overlap_within"]["n"] == str(32 * 31 // 2)
    assert float(row_of["(unrelated images)", "ssim", "similarity"]["value"]) == pytest.approx(0.15)
    between = {(pair.a, pair.b): pair.percent for pair in analysis.between}
    assert float(row_of["mucs", "", "overlap_with_dino"]["value"]) == between["mucs", "dino"]


def test_what_is_not_defined_is_not_in_the_csv():
    text = to_csv([analysed({"mucs": 0.2}, metrics=("mse",))])
    row_of = {(row["method"], row["statistic"]): row for row in csv.DictReader(io.StringIO(text))}
    assert ("mucs", "auc") in row_of and row_of["mucs", "auc"]["low"] == ""
    assert not {("mucs", "difference"), ("mucs", "hit_rate"), ("mucs", "mean_auc"), ("random", "p")} & set(row_of)
    assert "None" not in text and "nan" not in text


NASTY = "100% <a_b> & {c} \\d [e] ~f^ #1 $2 |"
ESCAPED = r"100\% $<$a\_b$>$ \& \{c\} \textbackslash{}d {[}e{]} \textasciitilde{}f\textasciicircum{} \#1 \$2 \textbar{}"


def test_latex_texts_are_escaped():
    table = Table(
        key="t",
        title=NASTY,
        note="\u22121\u00a0± 2 · μ",
        columns=("Method", NASTY),
        rows=((Cell(text=NASTY), Cell(text=".889*", strong=True, note=f"{NASTY} · paper .9")),),
    )
    assert to_latex([table]) == (
        "% Written by mucs-ray; needs \\usepackage{booktabs}.\n"
        "\n"
        "\\begin{table}[htbp]\n"
        "  \\centering\n"
        f"  \\caption{{{ESCAPED} $-$1~$\\pm$ 2 $\\cdot$ $\\mu$}}\n"
        "  \\label{tab:t}\n"
        "  \\begin{tabular}{lr}\n"
        "    \\toprule\n"
        f"    Method & {ESCAPED} \\\\\n"
        "    \\midrule\n"
        f"    {ESCAPED} & "
        f"\\shortstack[r]{{\\textbf{{.889*}} \\\\ \\scriptsize {ESCAPED} \\\\ \\scriptsize paper .9}} \\\\\n"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "\\end{table}\n"
    )


def test_latex_of_all_tables_is_whole():
    """Only ASCII, so that any engine reads it; braces close, and each row has the columns that the head has."""
    all_tables = tables(
        analysed({"mucs": 0.2, "dino": 0.1}, seeds=(1, 2), metrics=(*PAPER_METRICS, "mse")),
        published=published("artbench10"),
        method_labels=LABELS,
    )
    text = to_latex(all_tables)
    assert text.isascii()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(all_tables) == 7
    bare = re.sub(r"\\[{}&%]", "", text)
    assert bare.count("{") == bare.count("}")
    for environment, table in zip(bare.split(r"\begin{tabular}")[1:], all_tables, strict=True):
        rows = [line for line in environment.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") + 1 for line in rows} == {len(table.columns)}
        assert len(rows) == len(table.rows) + 1


# --- the paper ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_printed_means_are_the_means_of_the_four(recipe: str):
    """Four rounded numbers and a rounded mean: within one unit of the last digit; but for the misprint of spec 16."""
    paper = published(recipe)
    assert paper is not None
    for name, row in (paper.auc | paper.ensembles).items():
        mean = np.mean([row[metric] for metric in PAPER_METRICS])
        misprint = (recipe, name) == ("coco", "dtrak")
        assert (abs(row["mean"] - mean) <= 0.001 + 1e-9) != misprint, name
        assert (name in paper.notes) == misprint
    for name, row in paper.difference.items():
        for part in ("mean", "half_width"):
            mean = np.mean([getattr(row[metric], part) for metric in PAPER_METRICS])
            assert getattr(row["mean"], part) == pytest.approx(mean, abs=0.1 + 1e-9), (name, part)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_paper_has_all_its_methods(recipe: str):
    paper = published(recipe)
    assert paper is not None
    methods = {"condition", "clip", "dino", "dtrak", "das", "forward-inf", "abu", "mucs"}
    assert set(paper.auc) == set(paper.difference) == methods
    assert set(paper.minutes) == set(paper.within_overlap) == methods | {"random"}
    assert set(paper.ensembles) == set("RABCD")
    assert paper.ensembles["R"] == paper.auc["mucs"]
    pairs = {frozenset((a, b)) for a in methods for b in methods if a != b}
    assert set(paper.between_overlap) == (pairs if recipe == "artbench10" else set())
    assert bool(paper.ablations) == (recipe == "coco")


def test_numbers_of_the_paper_looked_up_by_hand():
    """One from each corner of each table of spec 16."""
    cifar, art, coco = (published(recipe) for recipe in RECIPES)
    assert cifar and art and coco
    assert (cifar.auc["condition"]["ssim"], cifar.auc["mucs"]["mean"], coco.auc["mucs"]["clip"]) == (
        0.572,
        0.897,
        0.715,
    )
    assert (art.auc["abu"]["sscd"], art.auc["das"]["lpips"], coco.auc["dtrak"]["mean"]) == (0.530, 0.764, 0.718)
    assert (art.difference["mucs"]["sscd"].mean, art.difference["mucs"]["sscd"].half_width) == (-25.4, 3.2)
    assert (coco.difference["clip"]["mean"].mean, coco.difference["clip"]["mean"].half_width) == (-14.3, 3.3)
    assert (cifar.minutes["mucs"], art.minutes["random"], coco.minutes["das"]) == ("22.8", "<0.1", "113.9")
    assert (art.within_overlap["abu"].mean, coco.within_overlap["mucs"].half_width) == (39.6, 0.2)
    assert (art.between_overlap[frozenset(("das", "dtrak"))], art.between_overlap[frozenset(("mucs", "abu"))]) == (
        60.9,
        6.3,
    )
    assert (coco.ensembles["D"]["clip"], cifar.ensembles["A"]["mean"]) == (0.806, 0.834)
    assert (coco.significant["mucs"], len(cifar.significant["mucs"])) == ((), 4)
    noise = coco.ablations["non-consistent noise"]
    assert (noise.auc["lpips"], noise.change) == (0.619, -19.0)


def test_ablations_change_the_mean_as_printed():
    """The mean of four numbers rounded to .001, relative to .757, is known to 0.2 %."""
    paper = published("coco")
    assert paper is not None and len(paper.ablations) == 10
    ours = np.mean(list(paper.ablations["mucs"].auc.values()))
    for name, row in paper.ablations.items():
        change = 100 * (np.mean(list(row.auc.values())) / ours - 1)
        assert row.change == pytest.approx(change, abs=0.2), name


def test_other_recipes_have_no_paper():
    assert published("emoji") is None
    assert published("custom") is None
