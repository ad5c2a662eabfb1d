"""Numbers and names as the reports write them: the paper's style, true minus signs, and non-breaking spaces."""

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
    "skew": "skew of the loss",
    "loss": "loss",
    "lpips-alex": "LPIPS (AlexNet)",
    "lpips-squeeze": "LPIPS (SqueezeNet)",
}
SMALLEST_P = 0.001


def metric_name(metric: str) -> str:
    """Return the name that the paper gives a metric; an unknown metric keeps its own."""
    return METRICS.get(metric, metric)


def share(value: float) -> str:
    """Write a number in [0, 1] as the paper prints an AUC: ".889", "1.000"."""
    return f"{value:.3f}".removeprefix("0")


def signed(value: float, decimals: int = 1) -> str:
    """Write a true minus sign, and none before a zero."""
    text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS) if text.strip("-0.") else text.lstrip("-")


def percent(value: float) -> str:
    """Write a number that is already a percentage: "26.8 %"."""
    return f"{value:.1f}{NBSP}%"


def whole_percent(value: float) -> str:
    """Write a number in [0, 1] as a percentage without decimals: "27 %"."""
    return f"{100 * value:.0f}{NBSP}%"


def plus_minus(mean: float, half_width: float | None) -> str:
    """Write "−13.5 ± 2.1", or the mean alone if there is no half-width."""
    return signed(mean) if half_width is None else f"{signed(mean)}{NBSP}±{NBSP}{half_width:.1f}"


def probability(p: float, *, leading_zero: bool = False) -> str:
    """Write "p = .017", or "p = 0.017" in running text; a smaller number than .001 becomes "p < .001"."""
    zero = "0" if leading_zero else ""
    if p < SMALLEST_P:
        return f"p{NBSP}<{NBSP}{zero}.001"
    text = f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
    return f"p{NBSP}={NBSP}{text if leading_zero else text.removeprefix('0')}"


def interval(ends: tuple[float, float] | None) -> str:
    """Write ".612 to .801", or nothing if there is no interval."""
    return f"{share(ends[0])} to {share(ends[1])}" if ends else ""


def from_paper(text: str | None) -> str:
    """Write "paper .889", or nothing if the paper has no number."""
    return f"paper {text}" if text else ""


def time_an_item(seconds: float) -> str:
    """Write minutes, as in the paper's Table 6, or seconds below one minute."""
    if seconds < 0.05:
        return f"<0.1{NBSP}s"
    return f"{seconds:.1f}{NBSP}s" if seconds < 59.95 else f"{seconds / 60:.1f}{NBSP}min"


def count(values: Sequence[int]) -> str:
    """Write the mean of a count over the seeds: "1,715"."""
    return f"{round(sum(values) / len(values)):,}"


def seeds(num: int) -> str:
    """Write "one seed" or "6 seeds"."""
    return "one seed" if num == 1 else f"{num} seeds"


def counted_things(num: int, thing: str) -> str:
    """Write "1 image" or "1,715 images"."""
    return f"{num:,} {thing}{'' if num == 1 else 's'}"


def label(method: str, labels: Mapping[str, str]) -> str:
    """Return the name of a method on the page, which is its own name unless another is given."""
    return labels.get(method, method)


def listed(names: Sequence[str]) -> str:
    """Join names as in "SSIM, SSCD and CLIP"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def small_print(*parts: str) -> str:
    """Join the parts that are not empty to the note of a cell."""
    return NOTE_SEPARATOR.join(part for part in parts if part)


def note(*sentences: str) -> str:
    """Join the sentences that are not empty to the note of a table."""
    return " ".join(sentence for sentence in sentences if sentence)


def counted(analysis: Analysis, num: int | None = None, unit: str = "") -> str:
    """Write "n = 120 generated images, 6 seeds."; `num` counts `unit`, if that is not the attributed images."""
    unit = unit or ("pictures" if analysis.by_loss else "generated images")
    n = analysis.num_items if num is None else num
    no_interval = "; no interval over seeds can be given" if len(analysis.seeds) == 1 else ""
    return f"n{NBSP}={NBSP}{n:,} {unit}, {seeds(len(analysis.seeds))}{no_interval}."
