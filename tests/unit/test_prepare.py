"""From a source to a prepared data set: what is written, what is left out, what is refused."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import mucs_ray
from mucs_ray.data.prepare import WrittenShard, prepare
from mucs_ray.data.sources import Choices, Task
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError
from mucs_ray.run import resolve


def art(folder: Path, contents: dict[str, bytes]) -> str:
    """An ArtBench-10 folder of these files, split/label/name."""
    lines = ["name,artist,url,public,length,width,label,split\n"]
    for path, content in contents.items():
        split, label, name = path.split("/")
        lines.append(f"{name},x,x,x,1,1,{label},{split}\n")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "ArtBench-10.csv").write_text("".join(lines))
    return str(folder)


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def where(tmp_path: Path) -> str:
    """Five training images, of which two cannot be used, and one test image."""
    contents = {f"train/a/{number}.png": png(number) for number in (0, 2, 4)}
    contents |= {"train/a/1.png": b"rubbish", "train/b/3.png": png(3)[:40], "test/b/5.png": png(5)}
    return art(tmp_path / "art", dict(sorted(contents.items(), key=lambda item: item[0][-5])))


def test_rejects_are_counted_and_listed(tmp_path: Path, where: str) -> None:
    dataset = prepare("artbench10", where=where, out=str(tmp_path / "out"), size=4)
    card = dataset.card
    assert (card.num_images("train"), card.num_images("test"), card.num_rejected) == (3, 1, 2)
    idx = {split: [i for t in dataset.stream(split) for i in t["idx"].to_pylist()] for split in ("train", "test")}
    assert idx == {"train": [0, 2, 4], "test": [5]}, "an idx is for life: a rejected image keeps its own"
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(each["idx"], each["where"]) for each in rejects] == [(1, "train/a/1.png"), (3, "train/b/3.png")]
    assert all(each["reason"] for each in rejects)
    assert card.request == {"name": "artbench10", "source": where, "size": "4", "rows_per_unit": ""}
    batch = dataset.batch(next(dataset.stream("train")))
    assert batch.z.shape == (3, 3, 4, 4) and batch.condition["condition"].shape == (3, 2)


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_same_request_again_does_nothing(tmp_path: Path, where: str) -> None:
    out = tmp_path / "out"
    first = prepare("artbench10", where=where, out=str(out), size=4)
    before = stamps(out)
    Path(where).rename(tmp_path / "moved")
    again = prepare("artbench10", where=where, out=str(out), size=4)
    assert stamps(out) == before and again.card == first.card


@pytest.mark.parametrize("change", [{"size": 5}, {"where": "elsewhere"}, {"name": "emoji", "where": None}])
def test_another_request_is_refused(tmp_path: Path, where: str, change: dict[str, object]) -> None:
    out = tmp_path / "out"
    request = {"name": "artbench10", "where": where, "size": 4}
    prepare(**request, out=str(out))  # pyright: ignore[reportArgumentType]
    before = stamps(out)
    with pytest.raises(InputError, match="already holds") as caught:
        prepare(**{**request, **change}, out=str(out))  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value) and stamps(out) == before


def test_two_preparations_are_byte_for_byte_equal(tmp_path: Path, where: str) -> None:
    first, other = (prepare("artbench10", where=where, out=str(tmp_path / each), size=4) for each in "ab")
    assert first.card.shards == other.card.shards and first.card.fingerprint == other.card.fingerprint


def test_if_no_image_can_be_used_nothing_is_prepared(tmp_path: Path) -> None:
    where = art(tmp_path / "art", {"train/a/0.png": b"rubbish", "train/a/1.png": b"", "test/a/2.png": png(2)})
    with pytest.raises(InputError, match=r"train/a/0\.png") as caught:
        prepare("artbench10", where=where, out=str(tmp_path / "out"), size=4)
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "card.json").exists()
    with pytest.raises(InputError, match="no data set"):
        Dataset.open(str(tmp_path / "out"))


def test_large_sources_go_through_execute_in_any_order(tmp_path: Path, where: str) -> None:
    asked: list[Task] = []

    def backwards(write: Callable[[Task], WrittenShard], tasks: Sequence[Task]) -> Iterator[WrittenShard]:
        asked.extend(tasks)
        return map(write, reversed(tasks))

    straight = prepare("artbench10", where=where, out=str(tmp_path / "a"), size=4)
    turned = prepare("artbench10", where=where, out=str(tmp_path / "b"), size=4, execute=backwards)
    assert len(asked) == 2 and straight.card == turned.card


def test_a_shard_that_is_damaged_later_is_one_line(tmp_path: Path, where: str) -> None:
    dataset = prepare("artbench10", where=where, out=str(tmp_path / "out"), size=4)
    shard = tmp_path / "out" / dataset.card.shards[0].path
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(InputError, match="corrupt") as caught:
        list(dataset.stream("train"))
    assert "\n" not in str(caught.value)


def test_it_writes_to_any_filesystem(where: str) -> None:
    dataset = prepare("artbench10", where=where, out="memory://prepared/set", size=4)
    assert Dataset.open("memory://prepared/set").card == dataset.card
    assert sum(table.num_rows for table in dataset.stream("train")) == 3


def test_an_unknown_source_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cifar10") as caught:
        prepare("cifar", where=None, out=str(tmp_path / "out"), size=None)
    assert "\n" not in str(caught.value)


def test_a_source_that_has_changed_is_told(tmp_path: Path, where: str) -> None:
    out = tmp_path / "out"
    first = prepare("artbench10", where=where, out=str(out), size=4)
    (Path(where) / "train/a/0.png").unlink()
    (Path(where) / "train/a/9.png").write_bytes(png(9))
    (Path(where) / "train/a/2.png").write_bytes(png(2) + b" ")
    with pytest.raises(InputError, match=r"has changed since .* 1 new \(train/a/9.png\), 1 gone .*, 1 changed") as told:
        prepare("artbench10", where=where, out=str(out), size=4)
    assert "\n" not in str(told.value) and "delete" in str(told.value)
    assert Dataset.open(str(out)).card == first.card


def test_a_preparation_that_failed_is_not_in_the_way(tmp_path: Path, where: str) -> None:
    bad = art(tmp_path / "bad", {"train/a/0.png": b"rubbish", "test/a/2.png": png(2)})
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no training image"):
        prepare("artbench10", where=bad, out=str(out), size=4)
    assert [path for path in out.rglob("*") if path.is_file()] == []
    assert prepare("artbench10", where=where, out=str(out), size=4).card.num_images("train") == 3


def test_a_preparation_that_was_cut_off_is_done_anew(tmp_path: Path, where: str) -> None:
    def cut_off(write: Callable[[Task], WrittenShard], tasks: Sequence[Task]) -> Iterator[WrittenShard]:
        yield write(tasks[0])
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare("artbench10", where=where, out=str(out), size=5, execute=cut_off)
    assert (out / "preparing.json").exists() and (out / "train/part-00000.parquet").exists()
    assert prepare("artbench10", where=where, out=str(out), size=4).card.size == 4
    (out / "card.json").unlink()
    with pytest.raises(InputError, match="not empty and holds no data set"):
        prepare("artbench10", where=where, out=str(out), size=4)


def test_choices_are_part_of_the_request_and_refused_where_they_mean_nothing(tmp_path: Path, where: str) -> None:
    with pytest.raises(InputError, match="artbench10 has no use for --label-column"):
        prepare("artbench10", where=where, out=str(tmp_path / "a"), size=4, choices=Choices(label_column="x"))
    source = str(Path(where, "train"))
    made = prepare("folder", where=source, out=str(tmp_path / "b"), size=4, choices=Choices(label_column="none"))
    assert made.card.request["label_column"] == "none" and made.card.condition == "none"
    with pytest.raises(InputError, match=r"already holds folder .*label_column none"):
        prepare("folder", where=source, out=str(tmp_path / "b"), size=4)


def test_a_set_without_test_images_says_what_it_can_be_used_for(tmp_path: Path, where: str) -> None:
    (Path(where) / "test/b/5.png").write_bytes(b"rubbish")
    told = prepare("artbench10", where=where, out=str(tmp_path / "out"), size=4).card.understood
    assert told["splits"][1]["images"] == 0 and "generate.conditions=train" in told["notes"][0]


def test_python_takes_the_options_of_the_command(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(resolve, "prepare_data", lambda *places, choices, console: asked.append((places, choices)))
    mucs_ray.prepare("folder", "in", size=8, text_column="none", label_column="kind", follow_links=True)
    expected = Choices(text_column="none", label_column="kind", follow_links=True)
    assert asked == [(("folder", "in", "data/folder", 8), expected)]
