"""What was made of a source: splits, classes, captions, and what was passed over, for the card and the terminal."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN_CLASSES, SHOWN_REASONS = 12, 20
TRAIN_ONLY = (
    "there are no test images: a training has nothing to be validated on, so use it with --weights; images are"
    " generated from the conditions of training images with --set generate.conditions=train"
)


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Files that were not used, for one reason."""

    reason: str
    count: int
    example: str


class Aside:
    """A count of the files that are passed over while a source is listed, with an example for each reason."""

    def __init__(self) -> None:
        """Nothing is passed over yet."""
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count a file, or several."""
        if count:
            self.counts[reason] += count
            self.examples.setdefault(reason, example)

    def sentence(self) -> str:
        """Return all of it in one line."""
        return "; ".join(f"{e.count:,} {e.reason}, e.g. {e.example}" for e in self.reasons()) or "there are none"

    def reasons(self) -> tuple[PassedOver, ...]:
        """Return the reasons, the most frequent first."""
        return tuple(PassedOver(reason, count, self.examples[reason]) for reason, count in self.counts.most_common())


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """What a source took its files for, before any image was decoded."""

    splits: dict[str, str] = field(default_factory=dict)
    """Where the images of each split are from, such as "train/"."""
    labels: str = ""
    """Where the labels are from, such as "class folders"; "" if there are none."""
    captions: str = ""
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Counts:
    """What the images that were written have; counts of shards add up."""

    images: Counter[str] = field(default_factory=Counter)
    """By split."""
    labels: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By split and label."""
    captioned: int = 0
    turned: int = 0

    def __iadd__(self, other: "Counts") -> "Counts":
        """Add those of another shard."""
        self.images += other.images
        self.labels += other.labels
        self.captioned += other.captioned
        self.turned += other.turned
        return self


def summary(understood: Understood, counts: Counts, classes: tuple[str, ...], reasons: Iterable[str]) -> dict[str, Any]:
    """Return what stands in the card: the source's own account, with the counts of the images that were written."""
    total = sum(counts.images.values())
    notes = list(understood.notes)
    if counts.turned:
        notes.append(f"{counted(counts.turned, 'image')} turned upright, as the EXIF orientation says")
    if not counts.images["test"]:
        notes.append(TRAIN_ONLY)
    return {
        "splits": [
            {"split": split, "images": counts.images[split], "from": understood.splits.get(split, "")}
            for split in ("train", "test")
        ],
        "labels": understood.labels,
        "classes": [
            {"name": name, **{split: counts.labels[split, number] for split in ("train", "test")}}
            for number, name in enumerate(classes)
        ],
        "captions": {"from": understood.captions, "share": counts.captioned / total if total else 0.0},
        "passed_over": [asdict(reason) for reason in understood.passed_over],
        "rejected": [
            {"reason": reason, "count": count} for reason, count in Counter(reasons).most_common(SHOWN_REASONS)
        ],
        "notes": notes,
    }


def lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table that `data prepare` ends with, as (what, how much and where from)."""
    if not summary:
        return
    for facts in summary["splits"]:
        source = f", from {facts['from']}" if facts["from"] and facts["images"] else ""
        yield facts["split"], counted(facts["images"], "image") + source
    yield "classes", of_classes(summary["classes"], summary["labels"])
    captions = summary["captions"]
    source = f", from {captions['from']}" if captions["from"] else ""
    yield "captions", f"{captions['share']:.1%} of the images have one{source}" if captions["share"] else "none"
    passed = [f"{entry['count']:,} {entry['reason']} (e.g. {entry['example']})" for entry in summary["passed_over"]]
    yield "passed over", "\n".join(passed) or "nothing"
    rejected = [f"{entry['count']:,} {entry['reason']}" for entry in summary["rejected"]]
    yield "rejected", "\n".join([*rejected, "each is listed in rejects.parquet"]) if rejected else "nothing"
    for note in summary["notes"]:
        yield "note", note


def of_classes(classes: Sequence[Mapping[str, Any]], source: str) -> str:
    """Write how many classes there are, and the images of the first of them."""
    if not classes:
        return "none"
    first = [f"{entry['name']} {entry['train']:,}+{entry['test']:,}" for entry in classes[:SHOWN_CLASSES]]
    more = f" and {len(classes) - SHOWN_CLASSES:,} more" if len(classes) > SHOWN_CLASSES else ""
    number = f"{len(classes):,}{f', from {source}' if source else ''}"
    return f"{number} (train+test): {', '.join(first)}{more}"


def counted(count: int, what: str) -> str:
    """Write a number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
