import re
from dataclasses import replace

import pytest

from mucs_ray.report.document import Histogram, ItemSection, RankedImage
from mucs_ray.report.html import render
from report_samples import (
    EVIL,
    UNLEARNING,
    Page,
    answer,
    defined,
    evaluation,
    holds,
    picture,
    pictures,
    report,
    section,
)


@pytest.mark.parametrize("methods", [("MUCS",), ("MUCS", "DAS")])
def test_foreign_text_is_inert_everywhere(methods: tuple[str, ...]) -> None:
    plain = Page(render(report(section(1, methods=methods), section(2, methods=methods))))
    evil = tuple(EVIL + name for name in methods)
    items = (section(1, methods=evil, label=EVIL, text=EVIL), section(2, methods=evil, label=EVIL, text=EVIL + "."))
    rows = ((EVIL, EVIL), (EVIL, EVIL))
    html = render(report(*items, title=EVIL, subtitle=EVIL, methods=rows[: len(methods)], facts=rows, stages=rows))
    page = Page(html)
    assert "<script" not in html.lower()
    names = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "link", "base", "form", "img"} & set(names)
    assert names.count("use") == [tag for tag, _ in plain.tags].count("use")
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "{{ 7*7 }}" in "".join(page.texts)
    assert EVIL in "".join(page.texts)
    assert EVIL in [attributes.get("title") for _, attributes in page.tags]


@pytest.mark.parametrize("methods", [("MUCS",), ("MUCS", "DAS")])
def test_training_images_have_their_names_in_the_source(methods: tuple[str, ...]) -> None:
    page = Page(render(report(section(1, methods=methods, label="", text=EVIL))))
    titles = [str(attributes.get("title")) for _, attributes in page.tags if attributes.get("title")]
    assert any(f"set/{EVIL}.png" in title for title in titles)
    if len(methods) == 1:
        assert f"{EVIL}.png".rsplit("/", 1)[-1] in [text.strip() for text in page.texts]


def test_file_is_self_contained() -> None:
    methods = ("MUCS", "DAS")
    page = Page(
        html := render(report(section(1, methods=methods), section(2, methods=methods), evaluations=(evaluation(),)))
    )
    ids = [f"#{attributes['id']}" for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "xlink:href", "action", "background"):
            value = attributes.get(key)
            assert value is None or value.startswith("data:image/png;base64,") or value in ids
    assert "url(" not in html and "@import" not in html and "http:" not in html and "https:" not in html
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert html.startswith("<!doctype html>") and html.rstrip().endswith("</html>")


def test_every_picture_round_trips() -> None:
    items = (section(1), section(2, ranked=16))
    actual = pictures(render(report(*items)))
    for item in items:
        assert holds(actual, item.image)
        assert all(holds(actual, ranked.image) for ranked in item.answers[0].ranked)


def test_a_picture_shown_often_is_in_the_file_once() -> None:
    items = tuple(section(number, methods=("MUCS", "DAS")) for number in (1, 2))
    html = render(report(*items))
    shown, sheet = pictures(html), defined(html)
    assert len(shown) == 2 + 2 * (1 + 2 * 12)
    assert len(sheet) == 2 + 2 * 12
    expected = [item.image for item in items]
    for item in items:
        expected += [item.image, *(ranked.image for each in item.answers for ranked in each.ranked)]
    assert all((one == other).all() for one, other in zip(shown, expected, strict=True))


def test_every_picture_has_its_words() -> None:
    page = Page(render(report(section(label="", text=""), section(2), evaluations=(evaluation(),))))
    tags = [
        attributes for tag, attributes in page.tags if tag == "svg" and "picture" in (attributes.get("class") or "")
    ]
    silent = [attributes for attributes in tags if not attributes.get("aria-label")]
    assert all(attributes.get("role") == "img" for attributes in tags if attributes not in silent)
    # the strip of items: the number under the first, which has no label, is the text of its link
    assert [attributes.get("aria-hidden") for attributes in silent] == ["true"]
    names = [attributes.get("aria-label") for attributes in tags]
    assert {"training image 41", "Generated image 1", "red apple: an apple", "MUCS, column 3"} <= set(names)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 40), (40, 64), (1, 1), (300, 200)])
def test_pictures_keep_their_size(height: int, width: int) -> None:
    image = picture(5, height, width)
    item = section()
    html = render(report(replace(item, image=image), section(2)))
    assert holds(pictures(html), image)
    large = re.search(r'<div class="frame"><svg class="picture (\w+)"', html)
    assert large is not None
    assert large.group(1) == ("sharp" if max(height, width) < 128 else "smooth")
    assert max(pictures(html)[0].shape[1:]) <= 128  # the index strip never repeats a large picture


def test_scores_ranks_and_idx_are_shown() -> None:
    item = section()
    texts = Page(render(report(item))).texts
    for ranked in item.answers[0].ranked:
        assert f"{ranked.score:.4f}".replace("-", "\u2212") in texts
        assert str(ranked.rank) in texts
        assert f"idx {ranked.idx}" in texts
    assert item.answers[0].ranked[-1].score < 0


def scored(scores: tuple[float, ...], *, method: str = "MUCS") -> ItemSection:
    """Return an item with one answer that has these scores."""
    one = answer(method=method, ranked=len(scores))
    ranked: list[RankedImage] = [replace(r, score=score) for r, score in zip(one.ranked, scores, strict=True)]
    return replace(section(), answers=(replace(one, ranked=tuple(ranked)),))


def test_small_scores_get_more_decimals() -> None:
    texts = Page(render(report(scored((0.00321, -1e-9))))).texts
    assert "0.003210" in texts
    assert "0.000000" in texts


@pytest.mark.parametrize(
    ("scores", "written"),
    [
        ((12.3456, 1.0), ["12.346", "1.000"]),
        ((12345.6, -9.9), ["12346", "\u221210"]),
        ((4.1e-7, -3e-8), ["4.10e\u221207", "\u22123.00e\u221208"]),
        ((0.0, 0.0), ["0.0000", "0.0000"]),
    ],
)
def test_scores_of_any_size_stay_short(scores: tuple[float, float], written: list[str]) -> None:
    html = render(report(scored(scores)))
    assert re.findall(r'class="score">([^<]*)<', html) == written


def test_each_method_has_its_own_decimals() -> None:
    small = scored((0.0032, 0.0011), method="DAS").answers[0]
    item = scored((0.5, 0.25))
    html = render(report(replace(item, answers=(*item.answers, small))))
    assert re.findall(r'class="score">([^<]*)<', html) == ["0.5000", "0.2500", "0.003200", "0.001100"]


def test_reached_is_stated_plainly() -> None:
    html = render(report())
    assert "Reached 95\u00a0% of the null loss after 3 updates, 6.2\u00a0s." in html
    assert 'class="warning"' not in html and 'class="badge"' not in html


STOPPED = replace(UNLEARNING, outcome="bound hit", item_loss=(0.1, 0.2, 0.61), steps=1200, seconds=131.0)


def test_what_makes_answers_worthless_stands_above_them() -> None:
    html = render(report(warnings=("mucs: nothing was unlearned & it is told",)))
    warned, items = (
        html.index("<b>Warning.</b> mucs: nothing was unlearned &amp; it is told."),
        html.index("How to read this"),
    )
    assert warned < items and html.count('class="warning"') == 1


def test_bound_hit_is_a_visible_warning() -> None:
    html = render(report(replace(section(), answers=(replace(answer(), unlearning=STOPPED),)), section(2)))
    assert html.count('class="warning"') == html.count('class="badge"') == html.count('class="warned"') == 1
    assert "after 1,200 updates, 2\u00a0min 11\u00a0s, at 61\u00a0% of the null loss instead of 95\u00a0%" in html


def test_bound_hit_of_one_of_several_methods_is_not_folded_away() -> None:
    item = section(methods=("MUCS", "DAS"))
    html = render(report(replace(item, answers=(item.answers[0], replace(item.answers[1], unlearning=STOPPED)))))
    assert html.count('class="warning"') == html.count('class="badge"') == 1
    folded, unfolded = re.findall(r"<details.*?</details>", html, re.S)
    assert folded.startswith("<details>") and 'class="warning"' not in folded
    assert unfolded.startswith("<details open>") and 'class="warning"' in unfolded


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_constant_scores_and_empty_curves(value: float) -> None:
    constant = Histogram(edges=(value,) * 11, counts=(0,) * 9 + (1057,), top_k_score=value)
    ranked = tuple(replace(one, score=value) for one in answer().ranked)
    stopped = replace(UNLEARNING, outcome="bound hit", item_loss=(), train_loss=(), steps=0, null_loss=0.0)
    changed = replace(answer(), ranked=ranked, histogram=constant, unlearning=stopped)
    html = render(report(replace(section(), answers=(changed,))))
    assert html.count("1,057 images, score") == 1


def test_methods_without_unlearning() -> None:
    item = replace(section(), answers=(replace(answer(), unlearning=None),))
    html = render(report(item, methods=(("gradient similarity", "one line"),)))
    assert html.count('<svg class="plot"') == 1
    assert "estimated by gradient similarity" in html and "unlearned" not in html
    assert "gradient similarity: one line" in html


def test_empty_texts_leave_no_empty_lines() -> None:
    html = render(report(section(label="", text="")))
    assert 'class="label"' not in html and 'class="text"' not in html
    assert "Generated image 1</h2>" in html
    assert 'aria-label="training image 41"' in html


@pytest.mark.parametrize("count", [1, 2, 40])
def test_the_index_links_every_item(count: int) -> None:
    html = render(report(*(section(number, ranked=3) for number in range(1, count + 1))))
    links = re.findall(r'href="#(item-\d+)"', html)
    assert links == ([] if count == 1 else re.findall(r'<section class="item" id="(item-\d+)"', html))
    assert html.count('<section class="item"') == count


def test_several_methods_have_a_block_each() -> None:
    methods = ("MUCS", "DAS", "random")
    lines = tuple((name, f"what {name} does") for name in methods)
    html = render(report(section(1, methods=methods, ranked=5), methods=lines))
    assert re.findall(r"<h4>(.*?)</h4>", html) == list(methods)
    blocks = re.findall(r'<section class="answer">(.*?)</section>', html, re.S)
    assert [block.count("<li ") for block in blocks] == [5] * 3
    assert [block.count('<svg class="plot"') for block in blocks] == [2] * 3
    texts = Page(html).texts
    for name, line in lines:
        assert name in texts and line in texts
    assert "mean normalised change" not in html


def test_one_method_has_no_heading_of_its_own() -> None:
    html = render(report())
    assert "<h4>" not in html and "<details" not in html
    assert "MUCS: mirrored unlearning" in html


def test_without_items_there_is_no_strip_and_no_item() -> None:
    html = render(replace(report(evaluations=(evaluation(),)), items=()))
    assert '<ol class="strip">' not in html and '<section class="item' not in html
    assert "How to read this" not in html
    assert "Without them 84 % of the images changed more." in html
