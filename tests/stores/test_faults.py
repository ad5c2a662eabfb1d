"""An S3 that is throttled, slow or cut off: passing faults are overcome, lasting ones give one line."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

from mucs_ray import storage
from mucs_ray.cli.app import app
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.errors import InputError, MachineError
from mucs_ray.storage import StoreError
from stores.conftest import free_port
from stores.faulty_proxy import Fault, Proxy, Rule
from tiny import rows, write_dataset

CONTENT = bytes(range(256)) * 400
IMPATIENT = {"retries": {"max_attempts": 0}}
"""A user's settings that turn off botocore's own retries, which wait for seconds."""


# --- passing faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["busy", "late", "cut", "refuse"])
def test_every_second_request_is_spoilt_and_all_is_right_in_the_end(
    fault: Fault, folder: str, proxy: Proxy, tmp_path: Path
):
    (tmp_path / "b.bin").write_bytes(CONTENT[1:])
    spoilt = Rule(fault=fault, every=2, seconds=0.3)
    with proxy.spoiling(spoilt):
        assert storage.publish(storage.join(folder, "a.bin"), CONTENT) == sha256(CONTENT).hexdigest()
        storage.publish_file(storage.join(folder, "b.bin"), tmp_path / "b.bin")
        assert storage.read_bytes(storage.join(folder, "b.bin")) == CONTENT[1:]
        assert storage.read_bytes(storage.join(folder, "a.bin")) == CONTENT
        assert storage.exists(storage.join(folder, "a.bin"))
        storage.remove(storage.join(folder, "a.bin"))
        assert not storage.exists(storage.join(folder, "a.bin"))
        assert storage.names(folder) == ["b.bin"]
    assert spoilt.spoilt >= 4


@pytest.mark.parametrize("fault", ["busy", "cut", "refuse"])
def test_a_unit_is_read_whole_through_faults(fault: Fault, folder: str, proxy: Proxy):
    images = rows(40, first_idx=0, seed=1)
    unit = write_dataset(folder, images, images[:1]).units("train")[1]
    undisturbed = read_unit(unit)
    spoilt = Rule(fault=fault, every=2)
    with proxy.spoiling(spoilt):
        assert read_unit(unit).equals(undisturbed)
    assert spoilt.spoilt >= 2


def test_a_read_that_was_cut_off_is_begun_again_not_pieced_together(
    folder: str, proxy: Proxy, settings: Callable[..., None]
):
    """Above its block size s3fs reads in pieces and does not request a lost piece again; see `storage.read_bytes`."""
    url = storage.join(folder, "a.bin")
    storage.publish(url, CONTENT)
    settings(default_block_size=1000)
    asked = len(proxy.requests)
    with proxy.spoiling(Rule(fault="cut", match="GET", at_most=2)):
        assert storage.read_bytes(url) == CONTENT
    assert proxy.requests[asked:] == [f"GET {url.removeprefix('s3:/')}"] * 3


# --- lasting faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("busy", "OSError: Please reduce your request rate."),
        ("forbidden", "PermissionError: Access Denied"),
        ("cut", "ClientPayloadError: Response payload is not completed"),
        ("refuse", "ConnectionClosedError: Connection was closed before we received a valid response"),
        ("late", "ReadTimeoutError: Read timeout on endpoint URL"),
    ],
)
def test_a_server_that_always_fails_is_one_line(
    fault: Fault, message: str, folder: str, proxy: Proxy, settings: Callable[..., None]
):
    """The number of attempts is bounded. Here "late" means that the server never answers.

    The HTTP client itself repeats a request that is cut off before its answer has begun.
    """
    url = storage.join(folder, "a.bin")
    storage.publish(url, CONTENT)
    settings(config_kwargs={**IMPATIENT, "read_timeout": 0.2 if fault == "late" else 20})
    asked = len(proxy.requests)
    with proxy.spoiling(Rule(fault=fault, seconds=60)):
        check_line(lambda: storage.read_bytes(url), url, message)
        assert len(proxy.requests) - asked <= 2 * storage.S3_RETRIES**2
        check_line(lambda: storage.exists(url), url)
        check_line(lambda: storage.publish(url, CONTENT), url)
    settings()
    assert storage.read_bytes(url) == CONTENT


def check_line(work: Callable[[], object], *parts: str) -> None:
    """Check that an error is one line, and a StoreError, after which workers try again, if the fault may pass."""
    with pytest.raises((StoreError, MachineError)) as error:
        work()
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts), line
    barred = "PermissionError: " in line or "NoCredentialsError: " in line
    assert type(error.value) is (MachineError if barred else StoreError)
    hint = "check your credentials for this store" if barred else "run the command again later"
    assert line.endswith(hint)


def test_a_unit_that_cannot_be_fetched_is_not_called_corrupt(folder: str, proxy: Proxy, settings: Callable[..., None]):
    images = rows(40, first_idx=0, seed=1)
    unit = write_dataset(folder, images, images[:1]).units("train")[0]
    settings(config_kwargs=IMPATIENT)
    with proxy.spoiling(Rule(fault="busy", match="GET")):
        check_line(lambda: read_unit(unit), unit.url, "Please reduce your request rate.")
    storage.publish(unit.url, storage.read_bytes(unit.url)[:-100])
    with pytest.raises(InputError, match="is corrupt"):
        read_unit(unit)


@pytest.fixture
def checking_credentials(moto: str) -> Iterator[None]:
    """Let the server refuse unknown users, as S3 does."""
    reset, plain = f"{moto}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urlopen(Request(reset, data=b"0", headers=plain)).close()
    try:
        yield
    finally:
        urlopen(Request(reset, data=b"inf", headers=plain)).close()


def test_wrong_credentials(folder: str, checking_credentials: None):
    url = storage.join(folder, "a.bin")
    message = "PermissionError: The AWS Access Key Id you provided does not exist in our records"
    check_line(lambda: storage.publish(url, CONTENT), url, message)
    check_line(lambda: storage.read_bytes(url), url, "PermissionError")


def test_no_credentials(folder: str, settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    settings()
    check_line(lambda: storage.publish(folder, CONTENT), folder, "NoCredentialsError: Unable to locate credentials")
    code, lines = command("status", "--run", folder)
    assert code == 3 and len(lines) == 1 and "NoCredentialsError: Unable to locate credentials" in lines[0]


def test_a_store_that_is_not_there(folder: str, settings: Callable[..., None]):
    settings(endpoint_url=f"http://127.0.0.1:{free_port()}", config_kwargs=IMPATIENT)
    check_line(lambda: storage.exists(folder), folder, "EndpointConnectionError: Could not connect to the endpoint URL")
    settings(endpoint_url="127.0.0.1:9000")
    with pytest.raises(InputError, match=r"Invalid endpoint: 127\.0\.0\.1:9000$"):
        storage.exists(folder)


def test_a_bucket_that_is_not_there(proxy: Proxy):
    with pytest.raises(InputError, match=r"s3://none/a.bin cannot be written: .*bucket.*; does the bucket exist\?$"):
        storage.publish("s3://none/a.bin", CONTENT)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("s3://none/a.bin")
    assert storage.names("s3://none/a") == [] and not storage.exists("s3://none/a.bin")
    with pytest.raises(InputError, match=r"^no data set at s3://none/data \(expected card.json there\)"):
        Dataset.open("s3://none/data")
    for url in ("s3://Not_a_Bucket!/data", "s3://Not_a_Bucket!"):
        with pytest.raises(InputError, match=r'^s3://Not_a_Bucket!.*Invalid bucket name "Not_a_Bucket!"'):
            Dataset.open(url)


def command(*arguments: str) -> tuple[int, list[str]]:
    """Run a command, and return its exit code and the lines of stderr."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stderr.splitlines()


def test_at_the_command_line_it_is_one_line_too(proxy: Proxy):
    code, lines = command("data", "prepare", "emoji", "--out", "s3://none/emoji")
    assert code == 2 and len(lines) == 1 and "does the bucket exist?" in lines[0]
    code, lines = command("status", "--run", "s3://none/run")
    assert code == 2 and len(lines) == 1 and "s3://none/run" in lines[0]
