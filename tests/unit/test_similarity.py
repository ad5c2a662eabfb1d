"""Each similarity equals that of an independent implementation, and a machine knows which of them it has."""

import os
import pickle
import socket
import urllib.request
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import signal

from mucs_ray.encoders import batches
from mucs_ray.encoders.lpips import load_distance
from mucs_ray.errors import InputError, MachineError
from mucs_ray.evaluation.metrics import DEFAULT, METRICS, ReadyMetric, ready_metrics
from mucs_ray.evaluation.similarity import mse, ssim

CPU = torch.device("cpu")
DATA = Path(os.environ.get("MUCS_RAY_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "weights_lpips"
TRUNKS = {"vgg": "vgg16_features_fp16.safetensors", "alex": "alexnet_features.safetensors"}
real_weights = pytest.mark.skipif(
    not all((DATA / name).is_file() for name in TRUNKS.values()), reason=f"the weights below LPIPS are not in {DATA}"
)


def images(count: int, px: int = 32, *, seed: int = 0) -> torch.Tensor:
    """Return smooth pictures with some noise, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bicubic")
    return (smooth + 0.05 * torch.randn(count, 3, px, px, generator=generator)).clamp(0, 1)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("something tried to reach the network")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remove all variables and caches, and return the folder in which torch hub would keep its checkpoints."""
    monkeypatch.delenv("MUCS_RAY_WEIGHTS", raising=False)
    monkeypatch.delenv("MUCS_RAY_CLIP_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def ready(name: str, path: Path) -> ReadyMetric:
    return ReadyMetric(name=name, path=str(path), digest=f"{path.name}:{path.stat().st_size}")


# --- SSIM


def reference_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Return SSIM as spec 11.1 defines it, in fp64: pad by reflection, filter, crop, mean."""
    x = np.arange(-5, 6)
    window = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def filtered(channel: np.ndarray) -> np.ndarray:
        return signal.correlate2d(np.pad(channel, 5, mode="reflect"), window, mode="valid")

    means = []
    for a, b in zip(first.astype(np.float64), second.astype(np.float64), strict=True):
        ma, mb = filtered(a), filtered(b)
        va, vb, cov = filtered(a * a) - ma**2, filtered(b * b) - mb**2, filtered(a * b) - ma * mb
        value = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        assert value.shape == a.shape
        means.append(value[5:-5, 5:-5].mean())
    return float(np.mean(means))


def test_ssim_is_that_of_a_second_implementation():
    first, second = images(5, 40, seed=1), images(5, 40, seed=2)
    second[:3] = (first[:3] + 0.3 * second[:3]).clamp(0, 1)
    second[3] = 1 - first[3]
    actual = ssim(first, second)
    expected = [reference_ssim(a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert actual.dtype == torch.float32 and actual.shape == (5,)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-6)
    assert actual[3] < 0 < actual[0]


def test_ssim_of_images_that_are_not_square():
    first, second = torch.rand(2, 3, 12, 31), torch.rand(2, 3, 12, 31)
    expected = [reference_ssim(a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    np.testing.assert_allclose(ssim(first, second).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.9, 0.9), (0.25, 0.75), (1.0, 0.99), (0.0, 0.0)])
def test_ssim_of_two_flat_images_is_the_closed_form(a: float, b: float):
    actual = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert float(actual) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-7)


def test_ssim_of_equal_images_is_1_and_the_order_of_two_does_not_matter():
    first, second = images(3, seed=3), images(3, seed=4)
    torch.testing.assert_close(ssim(first, first), torch.ones(3), rtol=0, atol=1e-7)
    torch.testing.assert_close(ssim(first, second), ssim(second, first), rtol=0, atol=0)


def test_ssim_of_an_image_too_small_is_refused():
    with pytest.raises(InputError, match="SSIM needs images of at least 12 x 12, found 40 x 11"):
        ssim(torch.rand(1, 3, 40, 11), torch.rand(1, 3, 40, 11))


# --- MSE


def test_mse_by_hand():
    first, second = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    second[0, 1, 0, 1] = 0.6
    second[1] = 1
    torch.testing.assert_close(mse(first, second), torch.tensor([-0.36 / 12, -1.0]))


# --- LPIPS


def lpips_package(trunk: str, weights: dict[str, torch.Tensor], **options) -> torch.nn.Module:
    """Return the lpips package's own network, with its convolutions overwritten one by one."""
    import lpips

    network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False, **options)
    modules = {name.split(".")[-1]: each for name, each in network.net.named_modules() if name.count(".") == 1}
    with torch.no_grad():
        for name, value in weights.items():
            _, number, *rest = name.split(".")
            modules[number].get_parameter(".".join(rest)).copy_(value)
    return network


@real_weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("trunk", "metric"), [("alex", "lpips-alex"), ("vgg", "lpips")])
def test_lpips_is_1_minus_that_of_the_package_on_real_weights(trunk: str, metric: str, no_network: None):
    """Also: the result is 1 for equal images, and less for images that differ more."""
    file = DATA / TRUNKS[trunk]
    first = images(3, 240, seed=5)
    second = first.clone()
    second[1] = (second[1] + 0.02 * torch.randn(3, 240, 240, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    second[2] = images(1, 240, seed=6)[0]
    actual = ready(metric, file).load(CPU)(first, second)
    from torchvision.transforms.functional import resize

    package = lpips_package(trunk, load_file(file))
    big = [resize(x, [224, 224]) for x in (first, second)]
    with torch.no_grad():
        expected = 1 - package(*big, normalize=True).flatten()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert actual[0] == 1 and actual[0] > actual[1] > actual[2] + 0.1
    assert actual.dtype == torch.float32 and not actual.requires_grad


@real_weights
def test_half_precision_weights_are_computed_in_single(no_network: None):
    module = load_distance(str(DATA / TRUNKS["vgg"]), CPU, trunk="vgg")
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore")
def test_lpips_on_random_squeezenet_weights_from_torchvisions_file(tmp_path: Path, no_network: None):
    """The file is a whole torchvision checkpoint as a pickle, including the classifier."""
    from torchvision.models import squeezenet1_1
    from torchvision.transforms.functional import resize

    torch.manual_seed(0)
    trunk = squeezenet1_1(weights=None)
    path = tmp_path / "squeezenet1_1.pth"
    torch.save(trunk.state_dict(), path)
    first, second = images(2, seed=7), images(2, seed=8)
    actual = ready("lpips-squeeze", path).load(CPU)(first, second)
    package = lpips_package("squeeze", {k: v for k, v in trunk.state_dict().items() if k.startswith("features")})
    big = [resize(x, [224, 224]) for x in (first, second)]
    with torch.no_grad():
        expected = 1 - package(*big, normalize=True).flatten()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_lpips_is_not_below_minus_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mucs_ray.encoders import lpips as perceptual

    monkeypatch.setattr(perceptual, "load_distance", lambda *_, **__: lambda first, _: 5 * first.mean((1, 2, 3)))
    similarity = perceptual.load_lpips("", CPU, trunk="vgg")
    torch.testing.assert_close(similarity(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)), torch.tensor([-1.0]))


@real_weights
def test_lpips_weights_of_another_network(no_network: None):
    with pytest.raises(InputError, match=r"alexnet_features\.safetensors is not torchvision VGG16: features") as error:
        ready("lpips", DATA / TRUNKS["alex"]).load(CPU)
    assert "\n" not in str(error.value)


# --- all of them


@pytest.mark.parametrize("name", ["ssim", "mse"])
def test_batches_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    first, second = images(7, 16, seed=9), images(7, 16, seed=10)
    similarity = ReadyMetric(name=name, path=None, digest="").load(CPU)
    whole = similarity(first, second)
    monkeypatch.setattr(batches, "BATCH", 3)
    torch.testing.assert_close(similarity(first, second), whole, rtol=0, atol=0)
    assert similarity(first[:0], second[:0]).shape == (0,)


def test_pairs_that_do_not_match_are_refused():
    similarity = ReadyMetric(name="mse", path=None, digest="").load(CPU)
    for first, second in [((4, 3, 16, 16), (1, 3, 16, 16)), ((2, 1, 16, 16),) * 2, ((3, 16, 16),) * 2]:
        with pytest.raises(InputError, match="of one size"):
            similarity(torch.rand(first), torch.rand(second))


def test_the_precision_of_the_process_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch):
    torch.set_float32_matmul_precision("high")
    try:
        before = torch.backends.cudnn.allow_tf32
        with batches.exact():
            inside = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        assert inside == ("highest", False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", before)
    finally:
        torch.set_float32_matmul_precision("highest")


# --- which there are


def test_the_registry():
    assert list(METRICS) == ["ssim", "sscd", "lpips", "clip", "dino", "mse", "lpips-alex", "lpips-squeeze"]
    assert {name for name, metric in METRICS.items() if metric.in_paper} == {"ssim", "sscd", "lpips", "clip"}
    assert all(metric.name == name and metric.label for name, metric in METRICS.items())
    assert METRICS["lpips"].label == "1 - LPIPS (VGG)"


def test_without_names_metrics_without_weights_are_left_out_and_named(bare_machine: Path):
    metrics, left_out = ready_metrics([], None)
    assert [metric.name for metric in metrics] == ["ssim", "mse"]
    assert list(left_out) == [name for name in DEFAULT if name not in ("ssim", "mse")]
    for name, line in left_out.items():
        assert line.startswith(f"{name}: ")
        assert "\n" not in line and "MUCS_RAY_WEIGHTS" in line and str(bare_machine) in line
        assert "curl -fL" in line or "hf download" in line
    assert "vgg16-397923af.pth" in left_out["lpips"] and "vgg16_features_fp16.safetensors" in left_out["lpips"]


def test_a_metric_asked_for_must_have_its_weights():
    with pytest.raises(MachineError, match=r"^sscd: .* sscd_disc_mixup\.torchscript\.pt in the folder that --weights"):
        ready_metrics(["ssim", "sscd"], None)


def test_an_unknown_metric_gives_the_known_ones():
    with pytest.raises(InputError, match="unknown metric fid; choose from ssim, sscd, lpips, clip"):
        ready_metrics(["ssim", "fid"], None)


def test_a_folder_of_weights_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MachineError, match=r"--weights-dir names .*nowhere, which is not a folder"):
        ready_metrics([], str(tmp_path / "nowhere"))
    monkeypatch.setenv("MUCS_RAY_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(MachineError, match=r"MUCS_RAY_WEIGHTS names .*nowhere, which is not a folder"):
        ready_metrics([], None)


@pytest.mark.parametrize("by", ["folder", "variable"])
def test_a_ready_metric_goes_to_a_worker(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Metrics come in the order asked for, once each; each can be pickled, and loads the file that it was made for."""
    path = tmp_path / "squeezenet1_1.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    if by == "variable":
        monkeypatch.setenv("MUCS_RAY_WEIGHTS", str(tmp_path))
    metrics, left_out = ready_metrics(["mse", "lpips-squeeze", "mse"], str(tmp_path) if by == "folder" else None)
    assert pickle.loads(pickle.dumps(metrics)) == metrics and left_out == {}
    assert metrics == [ReadyMetric(name="mse", path=None, digest=""), ready("lpips-squeeze", path)]
    with pytest.raises(InputError, match=r"not torchvision SqueezeNet 1\.1: features\.0\.bias is absent"):
        metrics[1].load(CPU)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 4)}, path)
    with pytest.raises(InputError, match=r"has changed: it was squeezenet1_1\.safetensors:"):
        metrics[1].load(CPU)
    path.unlink()
    with pytest.raises(MachineError, match=r"lpips-squeeze: its weights .* are not on this machine"):
        metrics[1].load(CPU)


@real_weights
def test_the_shared_folder_of_weights_is_a_weights_dir():
    metrics, _ = ready_metrics(["lpips", "lpips-alex"], str(DATA))
    assert [Path(metric.path or "").name for metric in metrics] == [TRUNKS["vgg"], TRUNKS["alex"]]
