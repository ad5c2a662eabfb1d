"""Which split a file belongs to, by the names of the folders it is in (or its own): train, test, validation.

Understood are the usual words in any capitals, with fillers and numbers around them (Train, val2017, test_images), at
the same depth for all files: under the root, under a folder that holds everything, or under each class. Held-out
folders may also lie among the class folders or the loose images of the training split.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mucs_ray.errors import InputError

Named = Literal["train", "test", "validation"]
WORDS: dict[str, Named] = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation",
    "valid": "validation", "validation": "validation", "dev": "validation", "eval": "validation",
    "evaluation": "validation", "holdout": "test", "heldout": "test",
}  # fmt: skip
FILLERS = (
    "set", "sets", "split", "splits", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos",
    "files", "folder", "part", "partial", "default", "of",
)  # fmt: skip
DEEPEST = 3


@dataclass(frozen=True, slots=True)
class Placed:
    """A file's split, the folder that says so ("" if none does), and the folders of its path that say something else.

    The first of the latter is the class folder.
    """

    split: Named
    folder: str
    inside: tuple[str, ...]


def split_of(name: str) -> Named | None:
    """Return the split that the name of a folder says, if it says nothing else."""
    words = [word for word in words_of(name) if word not in FILLERS]
    if len(words) != 1 or words[0] not in WORDS:
        return None
    return WORDS[words[0]]


def split_of_file(name: str) -> Named | None:
    """Return the split that the name of a file says, e.g. of train-00000-of-00001-0123abc.parquet."""
    said: list[Named] = [WORDS[word] for word in words_of(name) if word in WORDS]
    return said[0] if said else None


def named_splits(names: Sequence[str], where: str) -> dict[str, Named]:
    """Return the split of each file by its own name, or else by that of the nearest folder that says one.

    A file that says nothing is for training. InputError if there are only held-out files.
    """
    named: dict[str, Named] = {name: split_and_folders(name)[0] or "train" for name in names}
    if named and "train" not in named.values():
        raise InputError(f"{where}: every file is named as a held-out split; expected a training file beside them")
    return named


def split_and_folders(name: str) -> tuple[Named | None, str]:
    """Return the split that a file's name or a folder says, and the other folders that say anything."""
    *folders, file = name.split("/")
    split = split_of_file(file)
    for at in reversed(range(len(folders))):
        if split is None and (split := split_of(folders[at])):
            folders = folders[:at] + folders[at + 1 :]
    return split, "/".join(folder for folder in folders if not is_filler(folder))


def refuse_configurations(names: Sequence[str], where: str) -> None:
    """Raise InputError if the files are several data sets, each with a training split in a folder of its own."""
    of: dict[str, set[Named | None]] = {}
    for name in names:
        split, folders = split_and_folders(name)
        of.setdefault(folders, set()).add(split)
    if len(of) > 1 and all("train" in splits for splits in of.values()):
        raise InputError(f"{where} holds several data sets: {listed(of)}; give the folder of one as --source")


def words_of(name: str) -> list[str]:
    """Return the words in a name, in small letters; "trainset" is two."""
    words = re.findall(r"[a-z]+", name.lower())
    fillers = "|".join(FILLERS)
    cut = [re.fullmatch(f"({'|'.join(WORDS)})({fillers})", word) for word in words]
    return [part for word, found in zip(words, cut, strict=True) for part in (found.groups() if found else [word])]


def place(paths: Sequence[str], where: str) -> dict[str, Placed]:
    """Return the place of each file; those beside the folders of the splits are left out.

    InputError if there are only held-out files.
    """
    folders = {path: tuple(path.split("/")[:-1]) for path in paths}
    common = common_folders(folders.values())
    for depth in range(DEEPEST):
        if names := names_at(folders.values(), depth):
            said = {name: split_of(name) for name in names}
            if all(said.values()) and "train" in said.values():
                return within_train(cut(folders, depth, common))
    tops = {tuple_at(own, len(common)) for own in folders.values()}
    said = {split_of(top) if top else None for top in tops}
    held = next((at for at, name in enumerate(common) if split_of(name)), None)
    if held is not None or (said and said <= {"test", "validation"}):
        folder = "/".join(common[: held + 1] if held is not None else (*common, min(tops)))
        raise InputError(
            f"{where} holds no training files, only held-out ones ({folder}/);"
            f" to train on those, give --source {where.rstrip('/')}/{folder}"
        )
    if "train" in said and said & {"test", "validation"}:
        inside = {path: own for path, own in folders.items() if split_of(tuple_at(own, len(common)))}
        return within_train(cut(inside, len(common), common))
    return within_train({path: Placed("train", "", own) for path, own in folders.items()})


def cut(folders: dict[str, tuple[str, ...]], depth: int, common: tuple[str, ...]) -> dict[str, Placed]:
    """Return the places of files whose folder at this depth is that of their split."""
    placed = {}
    for path, own in folders.items():
        split = split_of(own[depth])
        assert split is not None
        placed[path] = Placed(split, "/".join(own[: depth + 1]), own[len(common) : depth] + own[depth + 1 :])
    return placed


def within_train(placed: dict[str, Placed]) -> dict[str, Placed]:
    """Return the places once folders that say nothing are dropped, and held-out ones among those of train are found."""
    train = {path: place for path, place in placed.items() if place.split == "train"}
    rest = {path: place for path, place in placed.items() if place.split != "train"}
    train, rest = without_fillers(train), without_fillers(rest)
    tops = {tuple_at(place.inside, 0) for place in train.values()}
    if not all(split_of(top) in ("test", "validation") for top in tops if top) or "" in tops:
        for path, place in train.items():
            split = split_of(tuple_at(place.inside, 0))
            if split in ("test", "validation"):
                folder = "/".join(filter(None, (place.folder, place.inside[0])))
                rest[path] = Placed(split, folder, place.inside[1:])
    return {path: rest.get(path) or train[path] for path in placed}


def without_fillers(placed: dict[str, Placed]) -> dict[str, Placed]:
    """Return the places without a first folder that all share and that is only a filler, such as images/."""
    while placed:
        tops = {tuple_at(place.inside, 0) for place in placed.values()}
        (top, *others) = tops
        if others or not top or not (is_filler(top) or split_of(top)):
            break
        placed = {path: Placed(place.split, place.folder, place.inside[1:]) for path, place in placed.items()}
    return placed


def is_filler(name: str) -> bool:
    """Return True for the name of a folder that says nothing, such as images."""
    words = words_of(name)
    return bool(words) and all(word in FILLERS for word in words)


def common_folders(folders: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the folders that all files are in, from the root."""
    common: tuple[str, ...] | None = None
    for own in folders:
        common = own if common is None else common[: first_difference(common, own)]
    return common or ()


def first_difference(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many of the first folders are the same."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def names_at(folders: Iterable[tuple[str, ...]], depth: int) -> set[str]:
    """Return the names of all folders at a depth; none if a file is not that deep."""
    names = {tuple_at(own, depth) for own in folders}
    return set() if "" in names else names


def tuple_at(folders: tuple[str, ...], depth: int) -> str:
    """Return the folder at a depth; "" if there is none."""
    return folders[depth] if depth < len(folders) else ""


def listed(names: Iterable[str]) -> str:
    """Write the names of folders; "" is the root."""
    return ", ".join(f"{name}/" if name else "the root" for name in sorted(set(names)))
