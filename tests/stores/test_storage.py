"""The promises of `mucs_ray.storage` hold on S3."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import s3fs

from mucs_ray import storage
from mucs_ray.data.table import Row, read_unit
from stores.faulty_proxy import Proxy
from tiny import write_dataset

CONTENT = bytes(range(256)) * 40


def test_what_is_published_is_read_back(folder: str, tmp_path: Path):
    url = storage.join(folder, "deep", "inside", "a.bin")
    assert not storage.exists(url) and storage.names(folder) == []
    assert storage.publish(url, b"first") == sha256(b"first").hexdigest()
    assert storage.publish(url, CONTENT) == sha256(CONTENT).hexdigest()
    assert storage.read_bytes(url) == CONTENT
    assert storage.exists(url) and storage.exists(storage.join(folder, "deep"))
    (tmp_path / "b.bin").write_bytes(CONTENT[:-1])
    other = storage.join(folder, "deep", "inside", "b.bin")
    assert storage.publish_file(other, tmp_path / "b.bin") == sha256(CONTENT[:-1]).hexdigest()
    assert storage.read_bytes(other) == CONTENT[:-1]
    storage.publish_json(storage.join(folder, "c.json"), {"b": [1, 2.5], "a": None})
    assert storage.read_json(storage.join(folder, "c.json")) == {"a": None, "b": [1, 2.5]}
    assert sorted(storage.names(storage.join(folder, "deep/inside"))) == ["a.bin", "b.bin"]
    assert sorted(storage.names(folder)) == ["c.json", "deep"]


def test_a_file_and_a_folder_can_be_removed_twice(folder: str):
    for name in ("a.bin", "inside/b.bin", "inside/deep/c.bin", "inside2/d.bin"):
        storage.publish(storage.join(folder, name), CONTENT)
    for _ in range(2):
        storage.remove(storage.join(folder, "a.bin"))
        assert sorted(storage.names(folder)) == ["inside", "inside2"]
    for _ in range(2):
        storage.remove_folder(storage.join(folder, "inside"))
        assert storage.names(folder) == ["inside2"]


def test_what_another_process_writes_is_seen_at_once(folder: str):
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    path = folder.removeprefix("s3://")
    other.pipe_file(f"{path}/first", b"1")
    assert storage.names(folder) == ["first"] and not storage.exists(storage.join(folder, "second"))
    other.pipe_file(f"{path}/second", b"2")
    assert sorted(storage.names(folder)) == ["first", "second"] and storage.exists(storage.join(folder, "second"))
    other.rm_file(f"{path}/first")
    assert storage.names(folder) == ["second"] and not storage.exists(storage.join(folder, "first"))


def test_a_file_is_read_in_one_request(folder: str, proxy: Proxy, settings: Callable[..., None]):
    """Several requests could mix two versions of a file that is overwritten meanwhile."""
    url = storage.join(folder, "a.bin")
    storage.publish(url, CONTENT)
    settings(default_block_size=1000)
    before = len(proxy.requests)
    assert storage.read_bytes(url) == CONTENT
    assert proxy.requests[before:] == [f"GET {url.removeprefix('s3:/')}"]


def test_a_unit_is_read_without_the_rest_of_its_shard(folder: str, proxy: Proxy):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1024, 3, 32, 32), dtype=np.uint8)  # noise: it cannot be compressed
    rows = [Row(idx=idx, image=image, label=0, text=()) for idx, image in enumerate(images)]
    dataset = write_dataset(folder, rows, rows[:1], rows_per_unit=64, rows_per_shard=1024)
    before = proxy.num_bytes_answered
    table = read_unit(dataset.units("train")[5])
    assert table["idx"].to_pylist() == list(range(320, 384))
    assert table["image"].to_pylist() == [image.tobytes() for image in images[320:384]]
    assert proxy.num_bytes_answered - before < 2 * images[320:384].nbytes


def test_the_users_settings_win(folder: str, proxy: Proxy, settings: Callable[..., None]):
    """A user sets the address in either of two places, and timeouts; the defaults of s3fs must end at some time."""
    url = storage.join(folder, "a.bin")
    storage.publish(url, CONTENT)
    assert any(url.removeprefix("s3:/") in request for request in proxy.requests)  # as AWS_ENDPOINT_URL says
    usual = client_config(url)
    assert usual.connect_timeout == 5
    attempts = storage.S3_RETRIES**2 * 5
    assert attempts * usual.read_timeout < 900
    settings(endpoint_url="http://127.0.0.1:9", config_kwargs={"read_timeout": 7})
    assert (client_config(url).read_timeout, client_config(url).connect_timeout) == (7, 5)
    fs, _ = storage.filesystem(url)
    assert fs.s3.meta.endpoint_url == "http://127.0.0.1:9"


def client_config(url: str) -> object:
    """Return botocore's configuration."""
    fs, _ = storage.filesystem(url)
    return fs.s3.meta.config
