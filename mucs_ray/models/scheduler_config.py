"""The process that a scheduler_config.json tells of, and the file that tells of a process (spec/models 1.3).

Whatever concerns a sampler only is left alone.
"""

from collections.abc import Mapping
from typing import Any, cast, get_args

from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas, Prediction, Schedule, Spacing
from mucs_ray.errors import InputError

DISTILLED = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "SCMScheduler")
"""Their models were not trained with a denoising loss on the user's images."""
SPACINGS = ("linspace", "leading", "trailing")


def process_of(document: Mapping[str, Any], path: str) -> VP:
    """Return the VP process of a scheduler; absent keys have the defaults of the class that writes such files."""
    kind = str(document.get("_class_name", "DDPMScheduler"))
    if kind in DISTILLED:
        raise InputError(
            f"{path}: the scheduler of a distilled model ({kind}), which was not trained to denoise your images; "
            "give the model that it was distilled from"
        )
    flow = kind.startswith("FlowMatch") or document.get("use_flow_sigmas")
    if flow or kind.startswith("EDM") or not {"beta_schedule", "trained_betas", "num_train_timesteps"} & {*document}:
        raise InputError(f"{path}: expected a scheduler with a table of betas, such as DDPMScheduler; found {kind}")
    prediction = document.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise InputError(f"{path}: prediction_type: expected {_or(get_args(Prediction))}; found {prediction!r}")
    spacing = document.get("timestep_spacing", "leading")
    return VP(
        betas=_betas_of(document, path),
        prediction=cast("Prediction", prediction),
        spacing=cast("Spacing", spacing if spacing in SPACINGS else "leading"),
        offset=int(document.get("steps_offset", 0)),
    )


def _betas_of(document: Mapping[str, Any], path: str) -> Betas:
    zero_snr = bool(document.get("rescale_betas_zero_snr", False))
    trained = document.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list) or not all(isinstance(beta, float) and 0 < beta < 1 for beta in trained):
            raise InputError(f"{path}: trained_betas: expected numbers between 0 and 1")
        table = tuple(trained)
        return Betas(schedule="trained", steps=len(table), trained=table, zero_snr=zero_snr)
    schedule = document.get("beta_schedule", "linear")
    known = [name for name in get_args(Schedule) if name != "trained"]
    if schedule not in known:
        raise InputError(f"{path}: beta_schedule: expected {_or(known)}; found {schedule!r}")
    steps = document.get("num_train_timesteps", 1000)
    first, last = document.get("beta_start", 1e-4), document.get("beta_end", 0.02)
    if not (isinstance(steps, int) and steps > 1):
        raise InputError(f"{path}: num_train_timesteps: expected 2 or more; found {steps!r}")
    if not (isinstance(first, float) and isinstance(last, float) and 0 < first < last < 1):
        raise InputError(f"{path}: expected 0 < beta_start < beta_end < 1; found {first!r} and {last!r}")
    return Betas(schedule=cast("Schedule", schedule), steps=steps, first=first, last=last, zero_snr=zero_snr)


def document_of(process: VP) -> dict[str, Any]:
    """Return the document that DDPMScheduler would save."""
    betas = process.betas
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": betas.steps,
        "beta_schedule": "linear" if betas.schedule == "trained" else betas.schedule,
        "beta_start": betas.first,
        "beta_end": betas.last,
        "trained_betas": list(betas.trained) or None,
        "rescale_betas_zero_snr": betas.zero_snr,
        "prediction_type": process.prediction,
        "timestep_spacing": process.spacing if process.spacing in SPACINGS else "leading",
        "steps_offset": process.offset,
        "clip_sample": False,
        "variance_type": "fixed_small",
    }


def _or(names: list[str] | tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
