"""A Ray cluster on loopback that grows and shrinks by itself: Ray's autoscaler v2 starts processes as its machines.

The wheel's own `AutoscalingCluster` reads a file that is not packaged, and stops every Ray of the machine.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from ray_head import OBJECT_STORE_BYTES, free_port, ray_head

IDLE_S = 12
"""The seconds after which an idle worker is taken away."""
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


@contextmanager
def autoscaling_cluster(max_workers: int = 2) -> Iterator[str]:
    """Yield the address of a head without CPUs and of 0 to `max_workers` workers, one CPU each, as work needs them."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config(address, max_workers), file)
        file.flush()
        options = ("--num-cpus=0", "--include-dashboard=false", f"--autoscaling-config={file.name}")
        with ray_head(*options, port=port, environment=ENVIRONMENT):
            yield address


def config(address: str, max_workers: int) -> dict[str, Any]:
    """Return the configuration that `ray up` takes, with a provider whose machines are processes."""
    worker = {"CPU": 1, "object_store_memory": OBJECT_STORE_BYTES}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "tests",
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "max_workers": max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_workers},
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in commands},
    }
