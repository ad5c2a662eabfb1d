"""The commands on models, `mucs-ray model ...`."""

from typing import Annotated

import typer
from rich.markup import escape

from mucs_ray.cli.options import DatasetOption, JsonOption, RecipeOption, SetOption, WeightsOption
from mucs_ray.cli.terminal import terminal

model_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at models.")


@model_app.callback()
def group() -> None:
    """Look at models."""


@model_app.command()
def check(
    folder: Annotated[
        str | None, typer.Argument(help="The folder of a pipeline of diffusers; it is described for a mail, too.")
    ] = None,
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    picture: Annotated[str | None, typer.Option("--picture", help="Save a sampled image as this PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Are these weights read as they were trained? Their loss on training images, and an image sampled from them.

    Every command that takes weights checks them first; this one tells more, and does nothing else. Of a pipeline's
    FOLDER it also says what it is, in a block to be mailed with a question; for that alone no data set is needed.
    """
    with terminal(as_json=as_json) as output:
        from mucs_ray import storage
        from mucs_ray.run.model_check import examine, pipeline_block, refuse
        from mucs_ray.run.resolve import resolve

        described: dict[str, str] = {}
        if folder is not None:
            described, block = pipeline_block(folder)
            output.console.print(escape(block), highlight=False, soft_wrap=True)
            if dataset is None and recipe is None:
                output.result({"pipeline": described})
                return
            weights = folder
        chosen, data = resolve(
            dataset=dataset, recipe=recipe, weights=weights, settings=list(settings or ()), console=output.console
        )
        examined = examine(chosen, data)
        for line in examined.lines:
            output.console.print(escape(line), highlight=False, soft_wrap=True)
        if picture is not None:
            storage.publish(storage.absolute(picture), examined.picture)
            output.console.print(f"picture  {escape(picture)}", highlight=False, soft_wrap=True)
        output.result({**examined.to_dict(), **({"pipeline": described} if described else {})})
        refuse(examined.checked, chosen.weights or f"model.kind {chosen.model.kind}")
