"""The tests of this folder share an S3 server, behind a proxy that can spoil its answers, and one real Ray."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import fsspec.config
import pytest
import ray
import s3fs

from mucs_ray.engine.session import Cluster, session
from stores.faulty_proxy import Proxy

BUCKET = "bucket"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None and time.monotonic() < deadline, "moto's server did not start"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of an S3 server that keeps everything in memory."""
    port = free_port()
    with (tmp_path_factory.mktemp("moto") / "log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def proxy(moto: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Yield the proxy, which every client takes for S3 because of environment variables that Ray's workers inherit."""
    with Proxy(moto) as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        for name, value in {
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": running.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MUCS_RAY_CACHE": str(tmp_path_factory.mktemp("cache")),
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield running
        running.shutdown()


@pytest.fixture
def folder(proxy: Proxy, request: pytest.FixtureRequest) -> str:
    """Return the URL of a folder of the bucket for one test."""
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Yield a function that sets what fsspec reads from ~/.config/fsspec and FSSPEC_S3_... when it is imported."""

    def give(**values: object) -> None:
        monkeypatch.setitem(fsspec.config.conf, "s3", values)
        s3fs.S3FileSystem.clear_instance_cache()  # a client that was made before would keep its credentials

    yield give
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def cluster(proxy: Proxy) -> Iterator[Cluster]:
    """Yield a Ray whose processes know the store's address only from fsspec's settings, which pyarrow does not read.

    A Ray of tests/engine that still runs is ended first, since it started with another environment.
    """
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL")
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", proxy.url)
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": proxy.url})
        with session() as running:
            yield running
