"""The Python API: the same answers as the commands give, and the code of its pages runs."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from users import Undefined

import mucs_ray
from mucs_ray import Answer, storage
from mucs_ray.api import encoded, method_names, setting
from mucs_ray.engine import trainings
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.results import report
from mucs_ray.run import driver
from mucs_ray.store.items import load_item
from mucs_ray.store.parts import matrix, stored_scores
from mucs_ray.store.topk import read_topk
from tiny import tiny_toml
from tiny_run import train_all_plainly

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def in_this_ray(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the Ray of all tests, and train without Ray Train."""
    monkeypatch.setattr(driver, "session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(trainings, "train_all", train_all_plainly)


@pytest.fixture(scope="module")
def folder(finished: Pipeline, copied: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a finished run, its data set, a recipe and a picture."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "runs").mkdir()
    shutil.move(copied(), folder / "runs" / "mine")
    shutil.copytree(finished.dataset.url, folder / "data" / "mine")
    storage.publish_json(str(folder / "runs" / "mine" / "recipe.json"), finished.describe())
    (folder / "mine.toml").write_text(tiny_toml("data/mine"))
    stage = finished.stages["generate"]
    pixels = np.array(Image.open(stage.url(stage.part("item-0000", "png"))))
    pixels[0, 0] ^= 1  # else the run would know its own image again
    Image.fromarray(pixels).save(folder / "out.png")
    return folder


@pytest.fixture
def run(folder: Path, in_this_ray: None) -> Iterator[mucs_ray.Run]:
    with chdir(folder):
        yield mucs_ray.open_run("runs/mine", progress=False)


def test_an_answer_is_that_of_the_run_directory(run: mucs_ray.Run, finished: Pipeline, tmp_path: Path):
    answer = run.attribute()
    assert isinstance(answer, Answer) and answer.methods == ["mucs"] and answer.queries == ["0", "1"]
    scores, idx, _ = answer.scores()
    stored = np.concatenate([matrix(table, "score") for table in stored_scores(finished.stages["attribute/mucs"])])
    assert np.array_equal(scores, stored.T) and idx.tolist() == list(range(60))
    assert answer.to_quanda().scores.shape == answer.to_dattri().scores.shape == (2, 60)
    rows = read_topk(finished.stages["attribute/mucs"])
    top = answer.top(2).to_pylist()
    assert [(row["query"], row["rank"], row["idx"]) for row in top] == [
        (str(item), rank, int(rows[item][rank - 1]["idx"])) for item in (0, 1) for rank in (1, 2)
    ]
    best = answer.training_image(top[0]["idx"])
    (row,) = finished.dataset.find({top[0]["idx"]}, "train").values()
    assert np.array_equal(np.asarray(best).transpose(2, 0, 1), row.image)
    assert answer.image(1).size == (8, 8) and answer.evaluation is None
    answer.to_csv(tmp_path / "top.csv")
    answer.to_parquet(tmp_path / "scores.parquet")
    assert len(list(csv.DictReader((tmp_path / "top.csv").open()))) == 20
    assert pq.read_table(tmp_path / "scores.parquet").column_names == ["idx", "score_0", "score_1"]
    assert {row["status"] for row in run.status().to_pylist()} == {"done"}


def test_pictures_are_given_as_objects(run: mucs_ray.Run, finished: Pipeline):
    picture, z = Image.open("out.png"), load_item(finished.stages["generate"], 0).z
    assert encoded(picture) == encoded(np.asarray(picture)) and encoded(z) == encoded(z.numpy().astype(np.float64))
    answer = run.attribute([picture, z], methods="random")  # which takes no pass over the training set
    files = [query.endswith("png") for query in answer.queries]
    assert sorted(files) == [False, True] and answer.methods == ["random"]
    assert np.array_equal(np.asarray(answer.image(files.index(True))), np.asarray(picture))
    stage = answer._pipeline.stages["generate"]
    assert torch.equal(load_item(stage, files.index(False)).z, z)
    html = answer._repr_html_()
    assert html.count("<img") == 2 * (1 + 8) and answer.queries[0][-24:] in html


def test_an_answer_for_pictures_is_tested_by_removal(run: mucs_ray.Run):
    answer = run.evaluate(["out.png", "idx:5"], methods="random")
    assert answer.evaluation is not None and answer.evaluation["num_items"] == 2
    (random,) = answer.evaluation["methods"]
    assert random["method"] == "random" and list(random["metrics"]) == ["skew", "loss"]
    assert random["metrics"]["loss"]["mean"] < 0  # minus the mean loss of both
    assert run.attribute(["idx:5"], methods="random").evaluation is None


def test_a_turned_or_odd_picture_is_seen_as_its_file_is():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    wide, buffer = Image.new("RGB", (4, 2), "red"), io.BytesIO()
    wide.save(buffer, format="JPEG", exif=exif)
    content, _ = encoded(Image.open(io.BytesIO(buffer.getvalue())))
    assert Image.open(io.BytesIO(content)).size == (2, 4)
    for mode in ("CMYK", "L", "RGBA", "P", "F"):
        assert Image.open(io.BytesIO(encoded(Image.new(mode, (2, 2)))[0])).mode == "RGB"


def test_the_first_method_is_the_one_asked_for(finished: Pipeline):
    """Not the first that happens to be done."""
    assert Answer(finished, ["mucs"]).methods[0] == "mucs"
    both = SimpleNamespace(**{"queries": (), "run_url": "x", "recipe": finished.recipe})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "shown_methods", lambda _: ["pixel", "das", "mucs"])
        assert Answer(both, ["mucs", "pixel", "abu"]).methods == ["mucs", "pixel", "das"]  # pyright: ignore


def test_classes_are_methods(run: mucs_ray.Run):
    (name,) = method_names(Undefined)
    request = replace(run._request, methods=[name], run=run.url)
    assert "attribute/users:Undefined/score" in run._open(request).plan("attribute")


def test_bad_input_is_one_line(run: mucs_ray.Run, tmp_path: Path):
    for image, message in (
        (np.zeros((8, 8), np.uint8), r"found ndarray \(8, 8\) of uint8"),
        ("no.png", "no such file"),
    ):
        with pytest.raises(mucs_ray.InputError, match=message):
            run.attribute(image)
    with pytest.raises(mucs_ray.InputError, match="unknown method 'muc'"):
        run.attribute(methods="muc")
    with pytest.raises(mucs_ray.InputError, match="there is no answer of das; there are mucs"):
        run.attribute().top(method="das")
    with pytest.raises(mucs_ray.InputError, match="which data set"):
        mucs_ray.open_run(tmp_path / "new")
    with pytest.raises(mucs_ray.InputError, match="was made with the data set"):
        mucs_ray.open_run("runs/mine", dataset="data/mine", progress=False).attribute("idx:5")
    for images, methods, message in (([], "mucs", "no picture in"), ("idx:5", [], "`methods` is empty")):
        with pytest.raises(mucs_ray.InputError, match=message):
            run.attribute(images, methods=methods)
    for value in (None, {"a": 1}):
        with pytest.raises(mucs_ray.InputError, match="settings: name: expected text"):
            mucs_ray.open_run("runs/mine", settings={"name": value})
    assert setting("name", "\U0001f600 smile") == 'name="\U0001f600 smile"'


def code_of_pages() -> dict[str, str]:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python-api.md").read_text(), flags=re.DOTALL)
    cells = json.loads((DOCS / "first-steps.ipynb").read_text())["cells"]
    return {
        "python-api.md": "\n".join(blocks),
        "first-steps.ipynb": "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"),
    }


@pytest.mark.parametrize("page", ["python-api.md", "first-steps.ipynb"])
def test_the_code_of_a_page_runs(page: str, folder: Path, in_this_ray: None):
    with chdir(folder):
        exec(compile(code_of_pages()[page], page, "exec"), {})
