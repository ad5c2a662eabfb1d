"""The tests of a file share a cluster of a head and two nodes; tests that kill nodes start clusters of their own."""

from collections.abc import Iterator

import pytest

from cluster_tools import Nodes, two_nodes
from mucs_ray.engine.session import Cluster, session


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCS_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def nodes(own_cache: None) -> Iterator[Nodes]:
    with two_nodes() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    """Yield a session for one file: this process can only be in one at a time, and other folders have theirs."""
    with session(nodes.address) as joined:
        yield joined
