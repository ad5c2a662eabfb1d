"""Which addresses of a Ray cluster can be joined, and what is said of the others."""

import pytest

from mucs_ray.engine.address import cluster_address
from mucs_ray.errors import MachineError


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "auto", "local", "[::1]:6379", "head"])
def test_an_address_to_join_is_taken_as_it_is(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere")
    assert cluster_address(address) == address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address(None) == address
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address(None) == "local"


@pytest.mark.parametrize(
    ("address", "told"),
    [("http://127.0.0.1:8265", "ray job submit --address http://127.0.0.1:8265 -- mucs-ray"),
     ("https://me:secret@ray.example.com/x", "--address https://ray.example.com/x -- mucs-ray"),
     ("ray://head:10001", "ray job submit --address http://head:8265 -- mucs-ray"),
     ("tcp://head:1", "no address of a Ray cluster")],
)  # fmt: skip
def test_another_address_is_one_line_that_says_which_is_needed(
    address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, source in ((address, "--address"), (None, "RAY_ADDRESS")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(MachineError) as caught:
            cluster_address(given)
        message = str(caught.value)
        assert message.startswith(f"{source} is ") and told in message and "HOST:PORT" in message
        assert "\n" not in message and "secret" not in message
