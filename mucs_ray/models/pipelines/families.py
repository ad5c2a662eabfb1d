"""The families of pipelines that can be read, and for each the classes that its parts may have.

Nothing outside this table is ever built: the name of a class in a user's folder is compared, and never imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FamilyName = Literal["sd", "sdxl"]
INSTALL = 'pip install "mucs-ray[diffusers]"'
"""What installs the packages of pipelines."""
DIFFUSERS, TRANSFORMERS = "diffusers", "transformers"
NETWORK_FILE, ENCODER_FILE = "diffusion_pytorch_model", "model"
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a pipeline that is read: its library, the classes that it may have, and its file of weights."""

    library: str
    classes: tuple[str, ...]
    weights: str = ""
    """The name of the file of weights without its ending; empty for a part without weights."""


UNET = Part(library=DIFFUSERS, classes=("UNet2DConditionModel",), weights=NETWORK_FILE)
VAE = Part(library=DIFFUSERS, classes=("AutoencoderKL",), weights=NETWORK_FILE)
TOKENIZER = Part(library=TRANSFORMERS, classes=TOKENIZERS)
ENCODER = Part(library=TRANSFORMERS, classes=("CLIPTextModel",), weights=ENCODER_FILE)
PROJECTING_ENCODER = Part(library=TRANSFORMERS, classes=("CLIPTextModelWithProjection",), weights=ENCODER_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family: the pipeline that saves it, and its parts by the names of their folders."""

    name: FamilyName
    pipeline: str
    title: str
    """What people call it."""
    parts: Mapping[str, Part]


FAMILIES = (
    Family(
        name="sd",
        pipeline="StableDiffusionPipeline",
        title="Stable Diffusion 1 or 2",
        parts={"unet": UNET, "vae": VAE, "text_encoder": ENCODER, "tokenizer": TOKENIZER},
    ),
    Family(
        name="sdxl",
        pipeline="StableDiffusionXLPipeline",
        title="Stable Diffusion XL",
        parts={
            "unet": UNET,
            "vae": VAE,
            "text_encoder": ENCODER,
            "tokenizer": TOKENIZER,
            "text_encoder_2": PROJECTING_ENCODER,
            "tokenizer_2": TOKENIZER,
        },
    ),
)
BY_PIPELINE = {family.pipeline: family for family in FAMILIES}
BY_NAME = {family.name: family for family in FAMILIES}
SCHEDULER = "scheduler"
UNREAD = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that neither training nor sampling needs; they are never opened."""
UNREAD_LIBRARIES = (DIFFUSERS, TRANSFORMERS, "stable_diffusion")
"""Where the classes of unread parts may be from; the last is what files of 2022 say of the safety checker."""
