"""Ray clusters of several nodes on this machine, on loopback, for tests that a single node is not enough for.

The nodes share the machine's files and its host name, but each has a working folder of its own.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100_000_000
QUICK_HEALTH_CHECKS = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300}
"""A killed node is noticed after 2 seconds, not 15. A slow one is unaffected: an answer may still take 10 seconds."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """A running cluster, which `mucs_ray.engine.session.session(nodes.address)` joins."""

    cluster: Cluster
    folder: Path
    """The folder that holds the working folder of each node; the head's is "head"."""

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, **options: Any) -> Any:
        """Add a node, by default with one CPU, and return its handle for `kill`. Call it in the main thread."""
        with chdir(tempfile.mkdtemp(prefix="node-", dir=self.folder)):
            return self.cluster.add_node(object_store_memory=OBJECT_STORE_BYTES, **options)

    def kill(self, node: Any) -> None:
        """Send SIGKILL to the node's processes and return before the cluster has noticed."""
        self.cluster.remove_node(node, allow_graceful=False)


def two_nodes(**options: Any) -> AbstractContextManager[Nodes]:
    """Yield a head without CPUs, for drivers, and two nodes with one CPU each, or with other options of `add`."""
    return some_nodes(2, **options)


@contextmanager
def some_nodes(count: int, **options: Any) -> Iterator[Nodes]:
    """Yield a cluster of a head without CPUs and this many nodes."""
    folder = Path(tempfile.mkdtemp(prefix="mucs-", dir="/tmp"))  # short: it is part of the names of sockets
    (folder / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")  # so that Ray looks for no cloud
    (folder / "head").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("HOME", str(folder))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # Ray's processes start three times slower with it
        cluster = Cluster()
        nodes = Nodes(cluster=cluster, folder=folder)
        try:
            with chdir(folder / "head"):
                cluster.add_node(
                    num_cpus=0,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _system_config=QUICK_HEALTH_CHECKS,
                )
            for _ in range(count):
                nodes.add(**options)
            yield nodes
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
