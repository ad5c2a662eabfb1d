"""The address of a Ray cluster: which kinds of address there are, and which of them a command can join."""

import os
from urllib.parse import urlsplit

from mucs_ray.errors import MachineError
from mucs_ray.storage import redacted

JOIN = "to join the cluster from a machine of it, give the HOST:PORT of its head (usually port 6379), or auto"


def cluster_address(given: str | None) -> str:
    """Return the address to join: the given one, else RAY_ADDRESS, else "local" for a private Ray.

    MachineError, which says what is needed, for an address of another kind, such as that of the dashboard.
    """
    address = given or os.environ.get("RAY_ADDRESS") or "local"
    scheme = urlsplit(address).scheme if "://" in address else ""
    if not scheme:
        return address
    told, shown = "--address" if given else "RAY_ADDRESS", redacted(address)
    if scheme in ("http", "https"):
        job = f"ray job submit --address {shown} -- mucs-ray ..."
        raise MachineError(f"{told} is {shown}, the dashboard of a cluster, which takes jobs: {job}; {JOIN}")
    if scheme == "ray":
        host = urlsplit(address).hostname or "HOST"
        raise MachineError(
            f"{told} is {shown}, a server for Ray Client, through which mucs-ray cannot work: submit a job (ray job"
            f" submit --address http://{host}:8265 -- mucs-ray ...); {JOIN}"
        )
    raise MachineError(f"{told} is {shown}, which is no address of a Ray cluster; {JOIN}")
