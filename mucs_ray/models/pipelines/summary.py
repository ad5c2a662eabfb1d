"""A pipeline's folder in a block that its owner can mail: what it is, whether it loads, and whether it computes."""

import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from math import inf, log10
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from mucs_ray.diffusion.condition import for_each
from mucs_ray.diffusion.model import Selector
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.models.pipelines.adapter import PipelineAdapter
from mucs_ray.models.pipelines.config import PipelineConfig
from mucs_ray.models.pipelines.folder import PipelineFolder, read_folder
from mucs_ray.models.pipelines.latents import LatentCodec
from mucs_ray.models.pipelines.model import TextUNet
from mucs_ray.spaces.codec import Asked
from mucs_ray.spaces.pictures import StoredPictures

PACKAGES = ("mucs-ray", "torch", "diffusers", "transformers", "safetensors")
PROMPT = "a photo of a cat"
DIGITS = 16
"""The digits of a sha256 that are shown."""


def summary(path: str) -> dict[str, str]:
    """Return facts on a pipeline by name. InputError, in one line, if it is refused or cannot be loaded."""
    folder = read_folder(path)
    spec = PipelineConfig(**PipelineConfig.opened({"path": path}, size=0, condition_dim=0))
    spec.check()
    kind, device = PipelineAdapter(spec), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, codec = kind.model(device), kind.codec(device)
    saved_by = folder.options.get("_diffusers_version", "an unknown version")
    facts = {
        "versions": f"{', '.join(map(installed, PACKAGES))}; Python {platform.python_version()}, {platform.system()}",
        "folder": f"{folder.path.name}: {folder.family.pipeline}, saved by diffusers {saved_by}",
        "licence": licence(folder.path),
        "family": f"{folder.family.title}, {spec.image_size} px, z of {' x '.join(map(str, model.shape))}",
    }
    facts |= {name: part_line(folder, name, spec.digests[name]) for name in spec.digests}
    facts["process"] = process_line(kind)
    facts["tensors"] = ", ".join(f"{which} {millions(model, which)}" for which in get_args(Selector))
    facts["codec"] = codec_line(codec, device)
    facts["one call"] = call_line(model, codec, device)
    return facts


def installed(package: str) -> str:
    """Return the name of a package and its version."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


def licence(folder: Path) -> str:
    """Return the line of the folder's README that names its licence; it is quoted, whatever it says."""
    readme = folder / "README.md"
    text = readme.read_text(errors="replace")[:20_000] if readme.is_file() else ""
    found = re.search(r"^licen[sc]e\s*:.*$", text, re.IGNORECASE | re.MULTILINE)
    return found[0].strip()[:200] if found else "the folder's README names none"


def part_line(folder: PipelineFolder, name: str, digest: str) -> str:
    """Return the class of a part, the size of its weights, and its sha256."""
    class_name = folder.classes.get(name) or str(folder.configs[name].get("_class_name", "?"))[:60]
    files = folder.weights(name) if name in folder.family.parts else []
    size = f", {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB in {files[-1].name}" if files else ""
    return f"{class_name}{size}, sha256 {digest[:DIGITS]}"


def process_line(kind: PipelineAdapter) -> str:
    """Return what the network predicts, and on which table of steps."""
    process = kind.process()
    betas = process.betas
    ends = "" if betas.trained else f" {betas.first:g} to {betas.last:g}"
    zero = ", stretched to zero signal" if betas.zero_snr else ""
    return f"predicts {process.prediction}; betas {betas.schedule}{ends}{zero}, {betas.steps} steps"


def millions(model: TextUNet, which: Selector) -> str:
    """Return how many parameters a choice of tensors has."""
    count = sum(model.network.get_parameter(name).numel() for name in model.names(which))
    return f"{count / 1e6:,.2f} M"


def codec_line(codec: LatentCodec, device: torch.device) -> str:
    """Return how well a drawn picture survives the VAE."""
    picture = drawn(codec.side).to(device)
    z = codec.encode(picture)
    error = (codec.decode(z) - picture / 255).double().square().mean().item()
    psnr = inf if error == 0 else -10 * log10(error)
    return f"z = (mean - {codec.shift:g}) x {codec.scale:g}; a drawn picture: PSNR {psnr:.1f} dB, z of rms {rms(z):.2f}"


def call_line(model: TextUNet, codec: LatentCodec, device: torch.device) -> str:
    """Return what one call of the network with a prompt gives, and how long it takes."""
    condition = for_each({key: rows[0] for key, rows in codec.condition([Asked(text=PROMPT)]).items()}, 1)
    noisy = normal(generator(1, "check/call"), 1, *model.shape).to(device)
    level = model.process.sampling_levels(2)[:1].float().to(device)
    started = time.monotonic()
    with torch.no_grad():
        raw = model.raw(noisy, model.process.at(level), {key: rows.to(device) for key, rows in condition.items()})
        finite = bool(raw.isfinite().all())
    seconds = time.monotonic() - started
    return f"{seconds:.2f} s on {device.type}, rms {rms(raw):.3f} for noise of rms {rms(noisy):.3f}" + (
        "" if finite else ", NOT FINITE"
    )


def rms(tensor: Tensor) -> float:
    """Return the root of the mean square."""
    return tensor.double().square().mean().sqrt().item()


def drawn(side: int) -> StoredPictures:
    """Draw a picture with slopes and edges: two ramps, and a disc in the third colour."""
    ramp = torch.linspace(0, 255, side)
    down, across = ramp[:, None].expand(side, side), ramp[None].expand(side, side)
    disc = (down - 127.5).square() + (across - 127.5).square() < 80**2
    return torch.stack([down, across, 255.0 * disc])[None].round().to(torch.uint8)
