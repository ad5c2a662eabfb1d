"""Numbers and names as the reports write them: the paper's style, true minus signs, spaces that do not break."""

from collections.abc import Mapping, Sequence

from mucs_ray.evaluation.analysis import Analysis
from mucs_ray.report.document import NOTE_SEPARATOR

NBSP = "\u00a0"
MINUS = "\u2212"
METRICS = {
    "ssim": "SSIM",
    "sscd": "SSCD",
    "lpips": "LPIPS",
    "clip": "CLIP",
    "dino": "DINO",
    "mse": "\u2212MSE",
    "lpips-alex": "LPIPS (AlexNet)",
    "lpips-squeeze": "LPIPS (SqueezeNet)",
}
SMALLEST_P = 0.001


def metric_name(metric: str) -> str:
    """As the paper writes it; unknown ones as they are."""
    return METRICS.get(metric, metric)


def share(value: float) -> str:
    """A number in [0, 1] as the paper prints an AUC: ".889", "1.000"."""
    return f"{value:.3f}".removeprefix("0")


def signed(value: float, decimals: int = 1) -> str:
    """With a true minus sign, and none before a zero."""
    text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS) if text.strip("-0.") else text.lstrip("-")


def percent(value: float) -> str:
    """Of a number that is a percentage already: "26.8 %"."""
    return f"{value:.1f}{NBSP}%"


def plus_minus(mean: float, half_width: float | None) -> str:
    """ "−13.5 ± 2.1", or the mean alone if there is no half-width."""
    return signed(mean) if half_width is None else f"{signed(mean)}{NBSP}±{NBSP}{half_width:.1f}"


def probability(p: float, *, leading_zero: bool = False) -> str:
    """ "p = .017", or "p = 0.017" in running text; "p < .001" for what is smaller than that."""
    zero = "0" if leading_zero else ""
    if p < SMALLEST_P:
        return f"p{NBSP}<{NBSP}{zero}.001"
    text = f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
    return f"p{NBSP}={NBSP}{text if leading_zero else text.removeprefix('0')}"


def interval(ends: tuple[float, float] | None) -> str:
    """ ".612 to .801", or nothing."""
    return f"{share(ends[0])} to {share(ends[1])}" if ends else ""


def from_paper(text: str | None) -> str:
    """ "paper .889", or nothing."""
    return f"paper {text}" if text else ""


def time_an_item(seconds: float) -> str:
    """In minutes as in the paper's Table 6, below one minute in seconds."""
    if seconds < 0.05:
        return f"<0.1{NBSP}s"
    return f"{seconds:.1f}{NBSP}s" if seconds < 59.95 else f"{seconds / 60:.1f}{NBSP}min"


def count(values: Sequence[int]) -> str:
    """The mean of a count over the seeds: "1,715"."""
    return f"{round(sum(values) / len(values)):,}"


def seeds(num: int) -> str:
    """ "one seed" or "6 seeds"."""
    return "one seed" if num == 1 else f"{num} seeds"


def label(method: str, labels: Mapping[str, str]) -> str:
    """What a method is called on the page; its own name if nothing else is given."""
    return labels.get(method, method)


def listed(names: Sequence[str]) -> str:
    """ "SSIM, SSCD and CLIP"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def small_print(*parts: str) -> str:
    """The parts there are, for the note of a cell."""
    return NOTE_SEPARATOR.join(part for part in parts if part)


def note(*sentences: str) -> str:
    """The sentences there are, for the note of a table."""
    return " ".join(sentence for sentence in sentences if sentence)


def counted(analysis: Analysis, num: int | None = None, what: str = "generated images") -> str:
    """ "n = 120 generated images, 6 seeds."; num: of another kind than the attributed images."""
    n = analysis.num_items if num is None else num
    no_interval = "; no interval over seeds can be given" if len(analysis.seeds) == 1 else ""
    return f"n{NBSP}={NBSP}{n:,} {what}, {seeds(len(analysis.seeds))}{no_interval}."
