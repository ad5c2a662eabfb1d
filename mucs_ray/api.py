"""The Python API: the commands as functions, and a run as an object (docs/python-api.md)."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps
from rich.console import Console

from mucs_ray import storage
from mucs_ray.errors import InputError
from mucs_ray.run.request import Request, open_runs

if TYPE_CHECKING:
    from torch import Tensor

    from mucs_ray.attribution.base import Attributor
    from mucs_ray.data.table import Dataset
    from mucs_ray.models.adapter import Adapter
    from mucs_ray.pipeline.graph import Pipeline
    from mucs_ray.results.answer import Answer

    Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor
    """A picture to explain: a file or idx:N; a PIL picture or uint8 [h, w, 3]; z, as floats of the model's shape."""
    Method = str | type[Attributor]

PICTURES = "queries/pictures"
"""The folder in a run directory for pictures that are given as objects."""


def prepare(
    name: str,
    source: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    *,
    size: int | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    keep_text: bool = False,
    follow_links: bool = False,
    progress: bool = True,
) -> "Dataset":
    """Write a training set in the canonical form, as `mucs-ray data prepare` does, and return it.

    Args:
        name: emoji, cifar10, artbench10, coco, folder, parquet or webdataset.
        source: The place of the original files; None for the embedded emoji.
        out: The URL to write to; data/NAME if it is None. The same request again returns what is there.
        size: The shorter side in pixels.
        image_column: The column of file names or images, where it has another name than those that are looked for.
        text_column: The column of captions; "none" for no captions.
        label_column: The column of labels; "none" for no labels.
        keep_text: Whether captions stay text and are not embedded, for models that have text encoders of their own.
        follow_links: Whether soft links are read that lead out of the source, or to folders.
        progress: Whether progress is printed.

    Raises:
        InputError: If the source cannot be read as such a set, or something else is at `out`.
    """
    from mucs_ray.data.sources import Choices
    from mucs_ray.run.resolve import prepare_data

    where = None if source is None else fspath(source)
    choices = Choices(
        image_column=image_column,
        text_column=text_column,
        label_column=label_column,
        keep_text=keep_text,
        follow_links=follow_links,
    )
    return prepare_data(name, where, fspath(out or f"data/{name}"), size, choices=choices, console=console(progress))


def open_run(
    run: str | PathLike[str] | None = None,
    *,
    dataset: "str | PathLike[str] | Dataset | None" = None,
    recipe: str | PathLike[str] | None = None,
    weights: str | PathLike[str] | None = None,
    model: "type[Adapter] | None" = None,
    settings: Mapping[str, Any] | None = None,
    items: int | None = None,
    seed: int | None = None,
    weights_dir: str | PathLike[str] | None = None,
    address: str | None = None,
    progress: bool = True,
    verbose: bool = False,
) -> "Run":
    """Open a run: a recipe, a data set and a directory, in which nothing is done before it is asked for.

    Args:
        run: The run directory, any fsspec URL; runs/RECIPE if it is None. A directory that holds a run needs no
            data set and no recipe: they are those of the run.
        dataset: The name of a recipe, the URL of a prepared data set, or what `prepare` has returned.
        recipe: A recipe's name or a TOML file.
        weights: A file of weights that were trained elsewhere.
        model: An `Adapter` class of your own, from a module that workers can import.
        settings: Values of the recipe by dotted key, e.g. {"score.noises": 50}.
        items: The number of generated images.
        seed: Names every random number of the run.
        weights_dir: A folder with weights of similarity metrics.
        address: A Ray cluster; by default RAY_ADDRESS, or a Ray of its own on this machine.
        progress: Whether plans and progress are printed.
        verbose: Whether Ray's own output is shown too.

    Raises:
        InputError: If anything that is named does not exist or does not fit.
    """
    given = dict(settings or {})
    if model is not None:
        given["model.kind"] = importable(model)
    request = Request(
        dataset=None if dataset is None else dataset_url(dataset),
        recipe=None if recipe is None else fspath(recipe),
        run=None if run is None else fspath(run),
        weights=None if weights is None else fspath(weights),
        items=items,
        seed=seed,
        settings=[setting(key, value) for key, value in given.items()],
        weights_dir=None if weights_dir is None else fspath(weights_dir),
        address=address,
        verbose=verbose,
    )
    return Run(request, console(progress))


def attribute(
    images: "Picture | Iterable[Picture] | None" = None,
    *,
    methods: "Method | Sequence[Method]" = "mucs",
    label: str | int | None = None,
    prompt: str | None = None,
    **options: Any,  # noqa: ANN401 - those of open_run
) -> "Answer":
    """Open a run (the options are those of `open_run`) and attribute in it; see `Run.attribute`."""
    return open_run(**options).attribute(images, methods=methods, label=label, prompt=prompt)


class Run:
    """One run directory, with what was asked of it. Its methods do what is missing, and read what is done."""

    def __init__(self, request: Request, console: Console) -> None:
        """Check the request. InputError if anything that it names does not exist or does not fit."""
        self._request, self._console = request, console
        self._pipeline = self._open(request)

    def _open(self, request: Request) -> "Pipeline":
        """Open the pipeline of a request; a run that is there knows its recipe and its data set."""
        (pipeline,) = open_runs(request, self._console, continues=request.recipe is None)
        return pipeline

    @property
    def url(self) -> str:
        """The URL of the run directory."""
        return self._pipeline.run_url

    @property
    def dataset(self) -> "Dataset":
        """The training set."""
        return self._pipeline.dataset

    def attribute(
        self,
        images: "Picture | Iterable[Picture] | None" = None,
        *,
        methods: "Method | Sequence[Method]" = "mucs",
        queries: str | PathLike[str] | None = None,
        label: str | int | None = None,
        prompt: str | None = None,
    ) -> "Answer":
        """Score every training image for pictures of yours, or for the generated images of the run.

        Args:
            images: What is to be explained: files, idx:N of the data set, PIL pictures, arrays [h, w, 3] of uint8, or
                floats of the shape of z. Without any, and without `queries`, the run generates images.
            methods: Names (see `mucs-ray methods`), or `Attributor` classes of your own.
            queries: A folder with pictures, and metadata.jsonl with their conditions.
            label: The class of `images`, by name or number.
            prompt: The caption of `images`.

        Raises:
            InputError: For bad input; nothing is changed.
            RunFailed: If the work failed; the same call goes on where it stopped.
        """
        return self._answer(self._asked(images, methods, queries, label, prompt), "attribute")

    def evaluate(
        self,
        images: "Picture | Iterable[Picture] | None" = None,
        *,
        methods: "Method | Sequence[Method]" = "mucs",
        queries: str | PathLike[str] | None = None,
        label: str | int | None = None,
        prompt: str | None = None,
    ) -> "Answer":
        """Attribute the images, train again without what each method names, and compare.

        The arguments are those of `attribute`, and the answer's `evaluation` has the statistics. Pictures of yours are
        compared by their loss; docs/your-own-picture.md says by what else.

        Raises:
            InputError: For bad input, or a model that cannot be trained again; nothing is changed.
            RunFailed: If the work failed; the same call goes on where it stopped.
        """
        return self._answer(self._asked(images, methods, queries, label, prompt), "evaluate")

    def _asked(
        self,
        images: "Picture | Iterable[Picture] | None",
        methods: "Method | Sequence[Method]",
        queries: str | PathLike[str] | None,
        label: str | int | None,
        prompt: str | None,
    ) -> Request:
        """Return the request for pictures, or for the images that the run generates."""
        single = isinstance(images, str | PathLike | Image.Image) or hasattr(images, "shape")
        several: Any = () if images is None else images
        given: list[Any] = [images] if single else list(several)
        if images is not None and not given:
            raise InputError("there is no picture in `images`; leave it out to explain images that the run generates")
        return replace(
            self._request,
            methods=method_names(methods),
            images=[self._file(image) for image in given],
            queries=None if queries is None else fspath(queries),
            label=None if label is None else str(label),
            prompt=prompt,
            items=None if given or queries is not None else self._request.items,
            run=self.url,
        )

    def status(self) -> pa.Table:
        """Return a table of the run's stages: stage, status (done, missing, stale, partial, failed) and reason."""
        from mucs_ray.pipeline.graph import reopen
        from mucs_ray.pipeline.recipe_file import read_recorded_run

        known = read_recorded_run(self.url)
        pipeline = self._pipeline if known is None else reopen(self.url, console=self._console)
        plan = pipeline.plan(pipeline.last_command())
        states = [{"stage": name, "status": state.status, "reason": state.reason} for name, state in plan.items()]
        return pa.Table.from_pylist(states)

    def _answer(self, request: Request, command: str) -> "Answer":
        from mucs_ray.results.answer import Answer
        from mucs_ray.run import driver

        pipeline = self._open(request)
        driver.run([pipeline], command)
        return Answer(pipeline, request.methods or ())

    def _file(self, image: Any) -> str:  # noqa: ANN401 - see Picture
        """Return the name of a picture's file; one that is given as an object is published in the run directory."""
        if isinstance(image, str | PathLike):
            return fspath(image)
        content, ending = encoded(image)
        name = f"{sha256(content).hexdigest()[:16]}.{ending}"
        url = storage.join(self.url, PICTURES, name)
        storage.publish(url, content)
        return url

    def __repr__(self) -> str:
        """Return one line."""
        return f"<mucs_ray.Run {self.url}>"


def dataset_url(dataset: "str | PathLike[str] | Dataset") -> str:
    """Return the name or the URL of a data set."""
    return fspath(dataset) if isinstance(dataset, str | PathLike) else dataset.url


def setting(key: str, value: Any) -> str:  # noqa: ANN401 - whatever a user gives
    """Return a value of the recipe as `--set` takes it. InputError for what is no value of TOML."""
    value = fspath(value) if isinstance(value, PathLike) else value
    if not isinstance(value, str | bool | int | float | list | tuple):
        raise InputError(f"settings: {key}: expected text, a number, true or false, or a list; found {value!r}")
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def encoded(image: Any) -> tuple[bytes, str]:  # noqa: ANN401 - see Picture
    """Return the content and the ending of the file for a picture or for z. InputError if it is neither."""
    from mucs_ray.data.decode import flatten

    buffer = io.BytesIO()
    if isinstance(image, Image.Image):
        try:
            flatten(ImageOps.exif_transpose(image)).save(buffer, format="PNG")
        except (OSError, ValueError) as error:
            raise InputError(f"a picture of mode {image.mode} cannot be read ({error}); convert it to RGB") from None
        return buffer.getvalue(), "png"
    if hasattr(image, "detach"):  # a tensor of torch, on any device and in any precision
        image = image.detach().cpu()
        image = image.float().numpy() if image.is_floating_point() else image.numpy()
    array = np.asarray(image)
    if array.dtype.kind == "f":
        np.save(buffer, array.astype(np.float32))
        return buffer.getvalue(), "npy"
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(
            "expected a file, a PIL picture, an array [h, w, 3] of uint8 or floats of the shape of z; found"
            f" {type(image).__name__} {array.shape} of {array.dtype}"
        )
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue(), "png"


def method_names(methods: Any) -> list[str]:  # noqa: ANN401 - see Method
    """Return the names of methods; of a class, MODULE:CLASS. InputError if there are none."""
    asked: list[Any] = [methods] if isinstance(methods, str | type) else list(methods)
    if not asked:
        raise InputError("`methods` is empty; name one, such as mucs")
    return [name if isinstance(name, str) else f"{name.__module__}:{name.__qualname__}" for name in asked]


def importable(adapter: type) -> str:
    """Return MODULE:CLASS of an adapter. InputError if workers could not import it."""
    if adapter.__module__ == "__main__" or "<locals>" in adapter.__qualname__:
        raise InputError(f"{adapter.__qualname__} must be in a module, for every worker imports it; put it in a file")
    return f"{adapter.__module__}:{adapter.__qualname__}"


def console(progress: bool) -> Console:
    """Return where plans and progress go: to the terminal or notebook, or nowhere."""
    return Console() if progress else Console(file=io.StringIO())
