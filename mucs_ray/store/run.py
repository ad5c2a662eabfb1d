"""The run directory: one folder for each stage, immutable parts, and a manifest that is written last.

    <run>/recipe.json
    <run>/<stage>/plan.json       written first: the values that the stage reads, and the parts it will have
    <run>/<stage>/<part>.<tag>.<suffix>   tag: the first 8 characters of the fingerprint, which tells the parts from
                                  those of other settings or of a late writer
    <run>/<stage>/failed.json     the reason why the stage failed; removed once it is done
    <run>/<stage>/manifest.json   written last: the values read, the files with digests, facts (times, counts)

A stage is done when its manifest has the present fingerprint; otherwise `State.reason` says why it is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from json import dumps
from typing import Any, Literal, TypeVar

from mucs_ray import storage
from mucs_ray.errors import InputError, MachineError

LAYOUT_VERSION = 1
FAILED = "failed.json"
Document = TypeVar("Document")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of manifest.json, which is written when a stage is done."""

    fingerprint: str
    reads: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    """The sha256 digest of each file, by the file's name."""
    facts: Mapping[str, Any]
    """Times, counts and results as JSON values; `mucs_ray.store.facts` reads them with their types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The part of plan.json that is read again."""

    fingerprint: str
    parts: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The content of failed.json."""

    fingerprint: str
    error: str
    units: Mapping[str, str]
    """The cause of failure of each unit of work that failed, by its name."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a stage, with the reason."""

    status: Literal["done", "missing", "stale", "partial", "failed"]
    reason: str = ""
    parts_there: int = 0
    parts_planned: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    """The units of work that failed, by name, each with its cause."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of one run, with its present settings and inputs."""

    run_url: str
    name: str
    """The name of the stage and of its folder, e.g. "attribute/mucs/score"."""
    reads: Mapping[str, Any]
    """The recipe values on which the stage depends, by dotted key."""
    inputs: Mapping[str, str]
    """The fingerprints of its inputs: the data set and earlier stages."""

    @cached_property
    def fingerprint(self) -> str:
        """The digest of everything on which the stage's output depends, and of nothing else."""
        facts = {"layout": LAYOUT_VERSION, "name": self.name, "reads": self.reads, "inputs": self.inputs}
        return sha256(dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """The URL of the stage's folder."""
        return storage.join(self.run_url, self.name)

    def part(self, key: str, suffix: str) -> str:
        """Return the file name of a part; `key` is made by this package, never taken from a user's text."""
        return f"{key}.{self.fingerprint[:8]}.{suffix}"

    def url(self, file: str) -> str:
        """Return the URL of a file of this stage."""
        return storage.join(self.folder, file)

    def manifest(self) -> Manifest | None:
        """Return the stored manifest, of whatever settings; None if there is none."""
        return read_document(self.url("manifest.json"), Manifest)

    def state(self) -> State:
        """Compare the folder with the present settings: done, stale (with the changed keys), failed, partial or
        missing.
        """
        manifest = self.manifest()
        if manifest and manifest.fingerprint == self.fingerprint:
            absent = set(manifest.files) - set(storage.names(self.folder))
            if not absent:
                return State(status="done")
        plan = read_document(self.url("plan.json"), Plan)
        if plan and plan.fingerprint == self.fingerprint:
            existing = set(storage.names(self.folder))
            num_existing = sum(name in existing for name in plan.parts)
            reason = f"{num_existing} of {len(plan.parts)} parts"
            failure = read_document(self.url(FAILED), Failure)
            failed = failure if failure and failure.fingerprint == self.fingerprint else None
            return State(
                status="failed" if failed else "partial",
                reason=f"{reason}; {failed.error}" if failed else reason,
                parts_there=num_existing,
                parts_planned=len(plan.parts),
                failed=failed.units if failed else {},
            )
        if manifest:
            return State(status="stale", reason=self.difference(manifest))
        return State(status="missing", reason="not run yet")

    def difference(self, manifest: Manifest) -> str:
        """Name the settings or inputs that differ from those of a manifest."""
        before, now = manifest.reads, {key: jsonable(value) for key, value in self.reads.items()}
        moved, sections = moved_settings(before, now)
        changes = [
            f"{key} {before.get(key)} -> {self.reads.get(key)}"
            for key in sorted({*before, *now} - moved)
            if before.get(key) != now.get(key)
        ]
        changes += [f"settings of {old} are now those of {new}" for old, new in sections]
        changes += [
            f"{key} changed"
            for key in sorted({*manifest.inputs, *self.inputs})
            if manifest.inputs.get(key) != self.inputs.get(key)
        ]
        return ", ".join(changes) or "made by another version"

    def begin(self, parts: list[str]) -> list[str]:
        """Publish the plan with these parts and return the parts that do not exist yet."""
        document = {"fingerprint": self.fingerprint, "parts": parts, "reads": self.reads, "inputs": self.inputs}
        storage.publish_json(self.url("plan.json"), document)
        existing = set(storage.names(self.folder))
        return [part for part in parts if part not in existing]

    def retract(self) -> None:
        """Delete an outdated manifest before untagged files are overwritten, since it would vouch for the old ones."""
        manifest = self.manifest()
        if manifest and manifest.fingerprint != self.fingerprint:
            storage.remove(self.url("manifest.json"))

    def fail(self, error: str, units: Mapping[str, str]) -> None:
        """Record why the stage failed, and the cause of failure of each unit of work."""
        document = {"fingerprint": self.fingerprint, "error": error, "units": dict(units)}
        storage.publish_json(self.url(FAILED), document)

    def finish(self, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
        """Publish the manifest, then delete the parts of other settings. `files` maps file names to sha256 digests."""
        document = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "reads": self.reads,
            "inputs": self.inputs,
            "files": files,
            "facts": facts,
        }
        storage.publish_json(self.url("manifest.json"), document)
        storage.remove(self.url(FAILED))
        keep = {*files, "plan.json", "manifest.json"}
        for name in list(storage.names(self.folder)):
            pieces = name.split(".")
            tagged = len(pieces) == 3 and is_tag(pieces[1])
            if tagged and name not in keep and pieces[1] != self.fingerprint[:8]:
                storage.remove(self.url(name))

    def facts(self) -> Mapping[str, Any]:
        """Return the facts of the finished stage; InputError if it is not done."""
        manifest = self.manifest()
        if manifest is None or manifest.fingerprint != self.fingerprint:
            raise InputError(f"stage {self.name} of {self.run_url} is not done; run it first")
        return manifest.facts

    def checked(self, file: str, manifest: Manifest | None = None) -> bytes:
        """Read a file of the finished stage. InputError if it is absent or differs from the manifest.

        A caller that reads many files passes the manifest, so that it is read only once.
        """
        manifest = manifest or self.manifest()
        again = f"delete it and {self.url('manifest.json')}, and run the command again"
        if manifest is None or file not in manifest.files:
            raise InputError(f"{self.name} has no file {file}; {again}")
        try:
            content = storage.read_bytes(self.url(file))
        except FileNotFoundError:
            raise InputError(f"{self.url(file)} is in the manifest but absent; {again}") from None
        if sha256(content).hexdigest() != manifest.files[file]:
            raise InputError(f"{self.url(file)} is corrupt: its sha256 differs from the manifest's; {again}")
        return content


def is_tag(text: str) -> bool:
    """Return True for a tag of `Stage.part`, and False for part of a user's "holiday.pictures.zip"."""
    return len(text) == 8 and set(text) <= set("0123456789abcdef")


def moved_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[set[str], list[tuple[str, str]]]:
    """Find settings that another version of mucs-ray has under another section, with the same value.

    Returns their keys of before and of now, and the pairs of sections.
    """
    lost, new = before.keys() - now.keys(), now.keys() - before.keys()
    pairs = [
        (old, key)
        for old in lost
        for key in new
        if old.rpartition(".")[2] == key.rpartition(".")[2] and before[old] == now[key]
    ]
    sections = {(old.rpartition(".")[0], key.rpartition(".")[0]) for old, key in pairs}
    return {key for pair in pairs for key in pair}, sorted(sections)


def jsonable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value as it is after a round trip through JSON (tuples become lists)."""
    return list(value) if isinstance(value, tuple) else value


def read_json_or_none(url: str) -> dict[str, Any] | None:
    """Read a JSON document; None if it is absent or was torn by an interrupted writer of another tool."""
    try:
        return storage.read_json(url)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def read_document(url: str, kind: type[Document]) -> Document | None:
    """Read a JSON object as a dataclass, leaving out other keys; None if it is absent, torn, or lacks a field."""
    values = read_json_or_none(url)
    try:
        return None if values is None else kind(**{field.name: values[field.name] for field in fields(kind)})  # pyright: ignore[reportArgumentType]
    except KeyError:
        return None


def open_run(url: str) -> str:
    """Return the absolute URL of a run directory after a test that it can be written; InputError if it cannot."""
    url = storage.absolute(url)
    try:
        storage.publish(storage.join(url, ".writable"), b"")
        storage.remove(storage.join(url, ".writable"))
    except (MachineError, storage.StoreError):
        raise  # from an object store, already one line
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"run directory {url} cannot be written ({reason}); choose another with --run") from None
    return url
