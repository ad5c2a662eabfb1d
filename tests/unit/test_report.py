import base64
import io
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_samples import (
    DENSITY,
    EVIL,
    TABLE,
    UNLEARNING,
    answer,
    evaluation,
    evil_evaluation,
    grid,
    picture,
    report,
    section,
)

from mucs_ray.report.document import Cell, Histogram, ItemSection, Picture, RankedImage
from mucs_ray.report.html import render


class Page(HTMLParser):
    """All start tags with attributes, and the text outside style sheets."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def pictures(html: str) -> list[Picture]:
    uris = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', html)
    opened = [Image.open(io.BytesIO(base64.b64decode(unescape(uri)))) for uri in uris]
    assert all(image.mode == "RGB" for image in opened)
    return [np.moveaxis(np.asarray(image), -1, 0) for image in opened]


def holds(found: list[Picture], wanted: Picture) -> bool:
    return any(image.shape == wanted.shape and bool((image == wanted).all()) for image in found)


def test_foreign_text_is_inert_everywhere() -> None:
    plain = Page(render(report(section(1), section(2))))
    items = (section(1, label=EVIL, text=EVIL), section(2, label=EVIL, text=EVIL + "."))
    rows = ((EVIL, EVIL), (EVIL, EVIL))
    html = render(report(*items, title=EVIL, subtitle=EVIL, method=EVIL, facts=rows, stages=rows))
    page = Page(html)
    assert "<script" not in html.lower()
    names = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(names)
    assert names.count("img") == [tag for tag, _ in plain.tags].count("img")
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "{{ 7*7 }}" in "".join(page.texts)
    assert EVIL in "".join(page.texts)
    assert EVIL in [attributes.get("title") for _, attributes in page.tags]


def test_file_is_self_contained() -> None:
    page = Page(html := render(report(section(1), section(2))))
    ids = {f"#{attributes['id']}" for _, attributes in page.tags if attributes.get("id")}
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
    found = pictures(render(report(*items)))
    for item in items:
        assert holds(found, item.image)
        assert all(holds(found, ranked.image) for ranked in item.ranked)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 40), (40, 64), (1, 1), (300, 200)])
def test_pictures_keep_their_size(height: int, width: int) -> None:
    image = picture(5, height, width)
    item = section()
    html = render(report(replace(item, image=image), section(2)))
    assert holds(pictures(html), image)
    large = re.search(r'<div class="frame"><img class="(\w+)"', html)
    assert large is not None
    assert large.group(1) == ("sharp" if max(height, width) < 128 else "smooth")
    assert max(pictures(html)[0].shape[1:]) <= 128  # the index strip never repeats a large picture


def test_scores_ranks_and_idx_are_shown() -> None:
    item = section()
    texts = Page(render(report(item))).texts
    for ranked in item.ranked:
        assert f"{ranked.score:.4f}".replace("-", "\u2212") in texts
        assert str(ranked.rank) in texts
        assert f"idx {ranked.idx}" in texts
    assert item.ranked[-1].score < 0


def test_small_scores_get_more_decimals() -> None:
    item = section(ranked=2)
    item = replace(item, ranked=tuple(replace(r, score=s) for r, s in zip(item.ranked, (0.00321, -1e-9), strict=True)))
    texts = Page(render(report(item))).texts
    assert "0.003210" in texts
    assert "0.000000" in texts


def test_reached_is_told_plainly() -> None:
    html = render(report())
    assert "Reached 95\u00a0% of the null loss after 3 updates, 6.2\u00a0s." in html
    assert 'class="warning"' not in html and 'class="badge"' not in html


def test_bound_hit_is_a_visible_warning() -> None:
    stopped = replace(UNLEARNING, outcome="bound hit", item_loss=(0.1, 0.2, 0.61), steps=1200, seconds=131.0)
    html = render(report(replace(section(), unlearning=stopped), section(2)))
    assert html.count('class="warning"') == html.count('class="badge"') == html.count('class="warned"') == 1
    assert "after 1,200 updates, 2\u00a0min 11\u00a0s, at 61\u00a0% of the null loss instead of 95\u00a0%" in html


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_constant_scores_and_empty_curves(value: float) -> None:
    item = section()
    constant = Histogram(edges=(value,) * 11, counts=(0,) * 9 + (1057,), top_k_score=value)
    ranked = tuple(replace(one, score=value) for one in item.ranked)
    stopped = replace(UNLEARNING, outcome="bound hit", item_loss=(), train_loss=(), steps=0, null_loss=0.0)
    html = render(report(replace(item, ranked=ranked, histogram=constant, unlearning=stopped)))
    assert html.count("1,057 images, score") == 1


def test_methods_without_unlearning() -> None:
    html = render(report(replace(section(), unlearning=None), method="gradient similarity"))
    assert html.count("<svg") == 1
    assert "estimated by gradient similarity" in html and "unlearned" not in html


def test_empty_texts_leave_no_empty_lines() -> None:
    html = render(report(section(label="", text="")))
    assert 'class="label"' not in html and 'class="text"' not in html
    assert "Generated image 1</h2>" in html
    assert 'alt="training image 41"' in html


@pytest.mark.parametrize("count", [1, 2, 40])
def test_the_index_links_every_item(count: int) -> None:
    html = render(report(*(section(number, ranked=3) for number in range(1, count + 1))))
    links = re.findall(r'href="#(item-\d+)"', html)
    assert links == ([] if count == 1 else re.findall(r'<section class="item" id="(item-\d+)"', html))
    assert html.count('<section class="item"') == count
