"""A folder in which diffusers has saved a pipeline, read as data: nothing that it names is imported or run.

    model_index.json                 the pipeline's class, and library and class of each part
    scheduler/scheduler_config.json
    PART/config.json                 PART/NAME.safetensors, or several with NAME.safetensors.index.json
    tokenizer*/                      files of the vocabulary

`DiffusionPipeline.from_pretrained` is not used on a user's folder, since it can import code from it (CVE-2026-44513).
Only JSON of a bounded size is opened here; weights are only hashed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path, PurePath
from typing import Any

from mucs_ray import storage
from mucs_ray.errors import InputError
from mucs_ray.models.pipelines.families import (
    BY_PIPELINE,
    FAMILIES,
    SCHEDULER,
    UNREAD,
    UNREAD_LIBRARIES,
    Family,
    Part,
)
from mucs_ray.models.scheduler_config import process_of
from mucs_ray.models.state_dict import few

INDEX = "model_index.json"
SCHEDULER_FILE = "scheduler_config.json"
SAFE = ".safetensors"
VARIANT = "fp16"
MOST_JSON_BYTES = 10_000_000
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
VOCABULARY = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
DISTILLED = re.compile(r"turbo|lightning|lcm|hyper-?sd|dmd2?\b|schnell|(?<!\d)[1-8]-?steps?(?![a-z])", re.IGNORECASE)
"""Words in the names of models that were distilled to a few steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFolder:
    """A pipeline's folder that was found in order."""

    path: Path
    family: Family
    classes: Mapping[str, str]
    """The class of each part, by the part's name."""
    configs: Mapping[str, Mapping[str, Any]]
    """The configuration of each part with weights, and of the scheduler."""
    options: Mapping[str, Any]
    """What model_index.json says beside the parts."""

    def weights(self, name: str) -> list[Path]:
        """Return the files of weights of a part."""
        return weight_files(self.path / name, self.family.parts[name])

    def variant(self, name: str) -> str | None:
        """Return what stands in the names of a part's files before their ending, such as "fp16"."""
        return VARIANT if f".{VARIANT}" in self.weights(name)[0].name else None

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each part that is read."""
        parts = {name: part_digest(self.path / name, part) for name, part in self.family.parts.items()}
        return {**parts, SCHEDULER: file_sha256(self.path / SCHEDULER / SCHEDULER_FILE)}


def read_folder(path: str) -> PipelineFolder:
    """Read a pipeline's folder. InputError, in one line, for whatever is not one of the families, or is not safe."""
    folder = local_folder(path)
    index = read_json(folder / INDEX)
    family = family_of(index, folder / INDEX)
    classes = checked_parts(index, family, folder / INDEX)
    configs: dict[str, Mapping[str, Any]] = {}
    for name, part in family.parts.items():
        refuse_remote_code(folder / name)
        if part.weights:
            configs[name] = part_config(folder / name, classes[name])
            weight_files(folder / name, part)
        elif not any((folder / name / file).is_file() for file in VOCABULARY):
            raise InputError(f"{folder / name}: no vocabulary ({', '.join(VOCABULARY[:3])}) in it")
    configs[SCHEDULER] = read_json(folder / SCHEDULER / SCHEDULER_FILE)
    options = {key: value for key, value in index.items() if not isinstance(value, list)}
    refuse_distilled(folder, configs, options)
    process_of(configs[SCHEDULER], str(folder / SCHEDULER / SCHEDULER_FILE))
    check_channels(configs, folder)
    return PipelineFolder(path=folder, family=family, classes=classes, configs=configs, options=options)


def lora_file(path: str) -> Path:
    """Return a LoRA's file as a path. InputError if it is absent, or may hold more than tensors."""
    file = Path(storage.absolute(path)) if storage.is_local(path) else None
    if file is None or not path.endswith(SAFE):
        raise InputError(
            f"{storage.redacted(path)}: expected a LoRA as {SAFE} on a disk; other files are programs as much as data"
        )
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    return file


def is_pipeline(path: str) -> bool:
    """Return whether a folder on this machine holds a pipeline; those of a UNet2DModel are models of another kind."""
    if not storage.is_local(path) or not (Path(storage.absolute(path)) / INDEX).is_file():
        return False
    return read_json(Path(storage.absolute(path)) / INDEX).get("unet") != ["diffusers", "UNet2DModel"]


def local_folder(path: str) -> Path:
    """Return the folder as a path. InputError if it is none, or not on a disk."""
    if not storage.is_local(path):
        raise InputError(f"{storage.redacted(path)}: expected a folder on a disk that every node sees; copy it there")
    folder = Path(storage.absolute(path))
    if PurePath(folder).suffix in (SAFE, *PICKLED) and folder.is_file():
        raise InputError(
            f"{folder}: one file, but a pipeline needs the configurations of its parts too; save it as a folder with"
            " StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds {INDEX}")
    return folder


def family_of(index: Mapping[str, Any], path: Path) -> Family:
    """Return the family whose pipeline the index names."""
    name = index.get("_class_name")
    known = ", ".join(family.pipeline for family in FAMILIES)
    if not isinstance(name, str):
        raise InputError(f"{path}: _class_name: expected {known}; found {short(name)}, which is a class of its own")
    if name not in BY_PIPELINE:
        raise InputError(f"{path}: _class_name: expected {known}; found {short(name)}, which is not read here")
    return BY_PIPELINE[name]


def checked_parts(index: Mapping[str, Any], family: Family, path: Path) -> dict[str, str]:
    """Return the classes of the family's parts. InputError for a part or a class that is not among those allowed."""
    listed = {name: value for name, value in index.items() if isinstance(value, list) and value != [None, None]}
    known = (*family.parts, SCHEDULER, *UNREAD)
    if others := [name for name in listed if name not in known]:
        found = few(map(short, others))
        raise InputError(f"{path}: {family.pipeline} has the parts {', '.join(known)}; found also {found}")
    for name in UNREAD:
        if name in listed and (len(listed[name]) != 2 or listed[name][0] not in UNREAD_LIBRARIES):
            raise InputError(
                f"{path}: {name}: expected a class of {' or '.join(UNREAD_LIBRARIES)}; {own(listed[name])}"
            )
    classes = {}
    for name, part in family.parts.items():
        allowed = [[part.library, each] for each in part.classes]
        if listed.get(name) not in allowed:
            expected = " or ".join(f"{part.library}.{each}" for each in part.classes)
            raise InputError(f"{path}: {name}: expected {expected}; {own(listed.get(name))}")
        classes[name] = listed[name][1]
    scheduler = listed.get(SCHEDULER)
    if scheduler is None or len(scheduler) != 2 or scheduler[0] != "diffusers":
        raise InputError(f"{path}: {SCHEDULER}: expected a class of diffusers; {own(scheduler)}")
    return classes


def own(value: object) -> str:
    """Write what was found in place of a class that is allowed."""
    return f"found {short(value)}, and code of others is never run"


def part_config(folder: Path, class_name: str) -> Mapping[str, Any]:
    """Return the config.json of a part with weights. InputError if it is that of another class."""
    config = read_json(folder / "config.json")
    said = config.get("_class_name", class_name)
    if said != class_name:
        raise InputError(f"{folder / 'config.json'}: _class_name: expected {class_name}; found {short(said)}")
    return config


def refuse_remote_code(folder: Path) -> None:
    """Raise InputError if a part asks for code that comes with it."""
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name):
            raise InputError(f"{folder / name}: auto_map names code in the folder, and code of others is never run")


def weight_files(folder: Path, part: Part) -> list[Path]:
    """Return a part's files of weights. InputError if there are none, one is absent, or they are pickled."""
    if not part.weights:
        return []
    names = [f"{part.weights}{variant}" for variant in ("", f".{VARIANT}")]
    for name in names:
        whole, index = folder / f"{name}{SAFE}", folder / f"{part.weights}{SAFE}.index{name[len(part.weights) :]}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return shards(index)
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED) if folder.is_dir() else []
    if pickled:
        raise InputError(
            f"{folder / pickled[0]}: refused, because a {Path(pickled[0]).suffix} is a program as much as it is data;"
            " where you trust it, save it again:"
            " StableDiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)"
        )
    raise InputError(f"{folder / names[0]}{SAFE}: no such file")


def shards(index: Path) -> list[Path]:
    """Return the files that an index lists. InputError if one leaves the folder, or is absent."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{index}: weight_map: expected the names of files beside it")
    files = sorted({str(name) for name in listed.values()})
    for name in files:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name) or name.startswith("."):
            raise InputError(f"{index}: weight_map: expected names of {SAFE} files beside it; found {short(name)}")
        if not (index.parent / name).is_file():
            raise InputError(f"{index.parent / name}: no such file, though {index.name} lists it")
    return [index, *(index.parent / name for name in files)]


def refuse_distilled(folder: Path, configs: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> None:
    """Raise InputError for a model that was distilled to few steps: its loss says nothing of the user's images."""
    why = "it was not trained to denoise your images; give the model that it was distilled from"
    if configs["unet"].get("time_cond_proj_dim") is not None:
        raise InputError(f"{folder}: a distilled model (its network reads the guidance), and {why}")
    names = [folder.name, *(str(config.get("_name_or_path", "")) for config in (options, *configs.values()))]
    said = next((match for name in names if (match := DISTILLED.search(PurePath(name).name))), None)
    if said and configs[SCHEDULER].get("timestep_spacing") == "trailing":
        raise InputError(f"{folder}: a distilled model ({said[0]!r} in its name, and trailing steps), and {why}")


def check_channels(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Raise InputError unless the network denoises the VAE's latents and reads nothing else beside the text."""
    latents = configs["vae"].get("latent_channels", 4)
    for key in ("in_channels", "out_channels"):
        channels = configs["unet"].get(key, 4)
        if channels != latents:
            raise InputError(
                f"{folder / 'unet' / 'config.json'}: {key}: expected the VAE's {latents}; found {short(channels)}"
                " (models that edit or fill in pictures read more, and are not attributed)"
            )


def part_digest(folder: Path, part: Part) -> str:
    """Return one sha256 for all files of a part that are read."""
    files = [folder / "config.json", *weight_files(folder, part)]
    files = files if part.weights else [folder / name for name in VOCABULARY if (folder / name).is_file()]
    return sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file; in one process a file that stays as it is is read once."""
    status = path.stat()
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a bounded size. InputError for anything else."""
    try:
        size = path.stat().st_size
        document = json.loads(path.read_bytes()) if size <= MOST_JSON_BYTES else None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # the latter for lists within lists within lists
        raise InputError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if size > MOST_JSON_BYTES:
        raise InputError(f"{path}: {size:,} bytes, more than the {MOST_JSON_BYTES:,} that such a file may have")
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object")
    return document


def short(value: object) -> str:
    """Write a value of a foreign file in one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
