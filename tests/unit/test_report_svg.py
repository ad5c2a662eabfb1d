import math
import re
from dataclasses import replace
from html import unescape

import pytest

from mucs_ray.report import density
from mucs_ray.report.density import curve_styles, density_plot
from mucs_ray.report.document import Curve, Density, Histogram
from mucs_ray.report.svg import BOTTOM, LABEL_WIDTH, LEFT, TOP, WIDTH, Frame, score_histogram, unlearning_curve
from report_samples import DENSITY, EVIL, HISTOGRAM, UNLEARNING


def test_svg_titles_escape_foreign_text() -> None:
    for svg in (
        unlearning_curve(UNLEARNING, title=EVIL),
        score_histogram(HISTOGRAM, top_k=3, title=EVIL),
        density_plot(replace(DENSITY, metric=EVIL), curve_styles([DENSITY])),
        density_plot(
            evil := Density(metric="m", curves=(replace(DENSITY.curves[0], label=EVIL),)), curve_styles([evil])
        ),
    ):
        assert "<script" not in svg and "<img" not in svg
        assert svg.count("</svg>") == 1
        assert EVIL in unescape(svg)


def test_curve_points_are_where_they_should_be() -> None:
    svg = unlearning_curve(UNLEARNING, title="t")
    train, item = re.findall(r'<polyline points="([^"]*)" class="(\w+)"', svg)
    right = WIDTH - LABEL_WIDTH
    full = 1.14  # the largest loss, 1.0, lies at 1 / 1.14 of the height
    up = (BOTTOM - TOP) / full
    assert (train[1], item[1]) == ("train", "item")
    points = [tuple(map(float, point.split(","))) for point in item[0].split()]
    expected = [(LEFT, BOTTOM), ((LEFT + right) / 2, BOTTOM - up / 2), (right, BOTTOM - up)]
    assert points == [pytest.approx(point, abs=0.011) for point in expected]
    assert points[0] == (44, 194) and points[1] == (161, 124.7)
    target = re.search(r'y1="([\d.]+)" y2="([\d.]+)" class="target"', svg)
    assert target is not None
    assert float(target.group(1)) == float(target.group(2)) == pytest.approx(BOTTOM - 0.95 * up, abs=0.01)
    assert "update</text>" in svg and "loss</text>" in svg


@pytest.mark.parametrize("losses", [(), (0.3,), (0.0,), tuple(0.01 * i for i in range(500))])
def test_curves_of_any_length(losses: tuple[float, ...]) -> None:
    changed = replace(UNLEARNING, item_loss=losses, train_loss=losses, steps=len(losses), target=0.0, null_loss=0.0)
    svg = unlearning_curve(changed, title="t")
    assert "nan" not in svg and "inf" not in svg
    assert svg.count("<circle") == (1 if losses else 0)


def test_curve_labels_do_not_touch() -> None:
    svg = unlearning_curve(replace(UNLEARNING, train_loss=(1.0, 1.0, 1.0)), title="t")
    y = {text: float(at) for at, text in re.findall(r'y="([\d.]+)" class="[a-z]+">(\w+ \w+)</text>', svg)}
    assert abs(y["generated image"] - y["training batches"]) >= 14


def bars(svg: str) -> list[tuple[int, list[tuple[float, float, float, str]]]]:
    """Return, for each bin, its count and (x, width, height, style) of its one or two rectangles."""
    bins = []
    for count, body in re.findall(r"<g><title>([\d,]+) images?,[^<]*</title>(.*?)</g>", svg):
        rects = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)" class="(\w+)"', body)
        bins.append((int(count.replace(",", "")), [(float(x), float(w), float(h), c) for x, w, h, c in rects]))
    return bins


def test_histogram_bars_sum_and_have_log_heights() -> None:
    svg = score_histogram(HISTOGRAM, top_k=7, title="t")
    actual = bars(svg)
    assert [count for count, _ in actual] == list(HISTOGRAM.counts)
    frame = Frame(x_range=(-0.1, 0.2), y_range=(math.log10(0.5), 3.05), right=WIDTH - 8)
    for count, rects in actual:
        for _, _, height, _ in rects:
            assert height == pytest.approx(BOTTOM - frame.y(math.log10(count)), abs=0.011)
    assert [[style for *_, style in rects] for _, rects in actual] == [["rest"], ["rest"], ["rest", "tail"]]
    marker = frame.x(0.15)
    _, (rest, tail) = actual[-1]
    assert rest[0] + rest[1] == pytest.approx(marker, abs=0.02) and tail[0] == pytest.approx(marker)
    assert "top 7: from 0.15" in svg and "score (higher = more influential)" in svg


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-9])
def test_constant_scores_make_one_bar(value: float) -> None:
    constant = Histogram(edges=(value,) * 11, counts=(0,) * 9 + (1057,), top_k_score=value)
    actual = bars(svg := score_histogram(constant, top_k=100, title="t"))
    assert [count for count, _ in actual] == [1057]
    assert "nan" not in svg and "inf" not in svg.replace("influential", "")


def test_empty_bins_have_no_bar() -> None:
    svg = score_histogram(Histogram(edges=(0.0, 0.5, 1.0), counts=(0, 0), top_k_score=1.0), top_k=1, title="t")
    assert bars(svg) == []


def test_a_wrong_number_of_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        score_histogram(replace(HISTOGRAM, counts=(1, 2)), top_k=1, title="t")


def curves(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each line by the name that hovering shows, from back to front."""
    lines = re.findall(r'<g class="curve [^>]*><title>(.*?): mean [^<]*</title>.*?<polyline points="([^"]*)"/>', svg)
    return {name: [(float(x), float(y)) for x, y in (at.split(",") for at in line.split())] for name, line in lines}


def test_density_points_are_where_they_should_be() -> None:
    """The axis from 0 to 1 spans 8 to 332, shared by both curves; the highest density, 4, lies at 6, none at 148."""
    assert (density.LEFT, density.RIGHT, density.TOP, density.BOTTOM) == (8, 332, 6, 148)
    svg = density_plot(DENSITY, curve_styles([DENSITY]))
    assert curves(svg) == {
        "random": [(8, 148), (170, 77), (332, 112.5)],
        "MUCS": [(8, 148), (89, 6), (170, 148)],
    }
    assert '<polygon points="8,148 8,148 89,6 170,148 170,148"/>' in svg
    assert "SSIM: means random 0.75, MUCS 0.25" in svg
    assert "further left = changed more" in svg


def test_density_means_are_marked_under_the_axis() -> None:
    svg = density_plot(DENSITY, curve_styles([DENSITY]))
    marks = re.findall(r'<g class="mean (\w+)"><title>([^<]*)</title><line x1="([\d.]+)" x2="([\d.]+)" y1="(\d+)"', svg)
    assert [(style, title, float(x1)) for style, title, x1, _, _ in marks] == [
        ("reference", "random: mean 0.75", 251.0),
        ("c1", "MUCS: mean 0.25", 89.0),
    ]
    assert all(x1 == x2 and int(y) > density.BOTTOM for _, _, x1, x2, y in marks)


def test_density_ticks_belong_to_the_axis_of_the_curves() -> None:
    svg = density_plot(DENSITY, curve_styles([DENSITY]))
    ticks = re.findall(r'<text x="([\d.]+)" y="179" class="tick"[^>]*>([\d.]+)</text>', svg)
    assert len(ticks) >= 4
    for x, value in ticks:
        assert float(x) == pytest.approx(8 + 324 * float(value), abs=0.01)


def test_methods_are_drawn_before_the_reference_and_the_first_in_front() -> None:
    method = DENSITY.curves[1]
    all_curves = (method, replace(method, label="DAS"), DENSITY.curves[0])
    changed = replace(DENSITY, curves=all_curves)
    assert list(curves(density_plot(changed, curve_styles([changed])))) == ["random", "DAS", "MUCS"]


def test_a_method_keeps_its_style_in_all_figures_and_no_two_share_one() -> None:
    method, names = DENSITY.curves[1], [f"method {number}" for number in range(12)]
    first = Density(metric="a", curves=(DENSITY.curves[0], *(replace(method, label=name) for name in names)))
    second = Density(metric="b", curves=first.curves[:0:-1])
    styles = curve_styles([first, second])
    assert list(styles) == ["random", *names]
    assert len(set(styles.values())) == 13
    assert styles["method 0"] == "c1" and styles["method 6"] == "c1 dashed"
    for name in names:
        assert f'<g class="curve {styles[name]}"><title>{name}: ' in density_plot(second, styles)


@pytest.mark.parametrize("height", [0.0, 1e-12, 3.0])
@pytest.mark.parametrize("xs", [(), (0.4,), (-2.0, -1.0)])
def test_densities_of_any_shape(xs: tuple[float, ...], height: float) -> None:
    curve = Curve(label="MUCS", x=xs, y=(height,) * len(xs), mean=-0.5)
    for shown in ((), (curve,)):
        svg = density_plot(Density(metric="m", curves=shown), {"MUCS": "c1"})
        assert "nan" not in svg and "inf" not in svg
        assert svg.count("<polyline") == (1 if shown and xs else 0)
    assert "mean \u22120.5" in svg


def test_a_density_without_its_heights_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        density_plot(replace(DENSITY, curves=(replace(DENSITY.curves[0], y=(1.0,)),)), {"random": "reference"})
