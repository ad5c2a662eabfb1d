"""Functions that turn what a user names (a data set, a recipe, weights) into a checked recipe and a data set."""

from collections.abc import Mapping, Sequence
from importlib import resources

from rich.console import Console
from rich.markup import escape

from mucs_ray import storage
from mucs_ray.attribution.registry import all_methods, available_methods, find_method
from mucs_ray.config.recipe import Recipe, Values, build, from_card, read_recipe, recipe_names, with_settings
from mucs_ray.config.values import with_new_sections
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices
from mucs_ray.data.sources.registry import load_source
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.engine.address import cluster_address
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import find, kind_of
from mucs_ray.pipeline.recipe_file import read_recorded_run

DEMO_WEIGHTS = str(resources.files("mucs_ray.recipes").joinpath("emoji.safetensors"))
"""The weights of a network of the recipe emoji that was trained for longer than a demo may take
(benchmarks/demo_weights.py)."""
MOST_MEASURED = 10_000
"""The images whose pixels are measured, spread over the training set: enough for the third digit."""
CUSTOM, SMALL = "custom", "custom-small"
"""The recipes for data sets that have none of their own: a large network, and a small one for a machine without a GPU.
"""
PIPELINES = "diffusers"
"""The recipe for pipelines, whatever data set they were made from."""
SMALL_LINE = f"there is no GPU here, so the recipe is {SMALL}, a small network; --recipe {CUSTOM} takes a large one"
EMBEDDED = "emoji"
"""The data set that needs no source, and is prepared on first use."""


def resolve(
    *,
    dataset: str | None,
    recipe: str | None,
    weights: str | None,
    settings: list[str],
    methods: Sequence[str] = (),
    console: Console,
    run: str | None = None,
    begun: str | None = None,
    address: str | None = None,
) -> tuple[Recipe, Dataset]:
    """Return the recipe with all settings applied, and its data set. InputError, in one line, for anything wrong.

    `methods` are the methods asked for, whose settings the recipe may hold. `run` is a run directory whose model is
    wanted: its own recipe is taken, unless another recipe or other weights are named. Where the recipe is chosen here,
    it is one that suits a run that was `begun` in this directory, else the cluster at `address` or this machine.
    """
    values = recipe_of_run(run, dataset) if run is not None and recipe is None and weights is None else None
    if values is None and dataset is None and recipe is None:
        raise InputError("which data set? give --dataset NAME_OR_URL (or --recipe); `mucs-ray demo` needs neither")
    is_default = values is None and recipe is None and weights is None
    raw = raw_recipe(dataset, recipe) if values is None else values
    values = with_kind(raw, settings) if weights is None else with_weights(raw, weights, settings)
    if "data" not in values:
        raise InputError('the recipe names no data set; give --dataset, or data = "URL" in the recipe')
    opened = open_dataset(str(values["data"]), console)
    if is_default:
        build(from_card(values, opened.card), methods)  # wrong settings are refused before torch is asked for a GPU
        if takes_small(raw, settings, begun, address):
            console.print(SMALL_LINE, highlight=False, soft_wrap=True)
            values = with_settings({**read_recipe(SMALL), "data": raw["data"], "name": raw["name"]}, settings)
    built = build(with_measured(from_card(values, opened.card), opened, console), methods)
    if built.weights is not None:
        from mucs_ray.store.weights import load_weights

        spec, _ = load_weights(built.weights, values.get("model", {}))
        built = build({**values, "model": spec.to_dict()}, methods)
    return built, opened


def with_weights(values: Values, weights: str, settings: Sequence[str]) -> Values:
    """Return raw values with a file of weights or, for a folder with a pipeline, with that as the model.

    What a recipe says of its own network does not hold for a pipeline; what the settings say of the model does.
    """
    from mucs_ray.models.pipelines.folder import is_pipeline  # with torch, which weights need in any case

    if not is_pipeline(weights):
        return {**with_kind(values, settings), "weights": storage.absolute(weights)}
    if is_custom(values):  # nothing in it was chosen for this data set
        values = {**read_recipe(PIPELINES), **{key: values[key] for key in ("name", "data")}}
    section = values.get("model", {})
    own = dict(section) if isinstance(section, Mapping) and kind_of(section) == "diffusers" else {}
    pipeline = {**own, "kind": "diffusers", "path": storage.absolute(weights)}
    return with_settings({**values, "model": pipeline}, settings)


def with_measured(values: Values, dataset: Dataset, console: Console) -> Values:
    """Fill settings of the model that are to be measured on the training images; what is measured is told."""
    section = values.get("model", {})
    if not isinstance(section, Mapping):
        return values  # `build` reports what is wrong
    filled = find(kind_of(section)).spec_class.measured(section, lambda: mean_square(dataset))
    for key, value in filled.items():
        if value != section.get(key):
            console.print(f"model.{key} = {value:g}, measured on the training images", highlight=False)
    return {**values, "model": filled} if filled != section else values


def mean_square(dataset: Dataset) -> float:
    """Return the mean square of the pixels in [-1, 1], of about `MOST_MEASURED` training images at most."""
    units = dataset.units("train")
    total = count = 0.0
    for unit in units[:: max(1, dataset.card.num_images("train") // MOST_MEASURED)]:
        z = dataset.batch(read_unit(unit)).z
        total, count = total + z.double().square().sum().item(), count + z.numel()
    return total / count


def default_run(dataset: str | None, recipe: str | None) -> str | None:
    """Return the run directory of a request that names none; None if it names no data set and no recipe either."""
    return f"runs/{raw_recipe(dataset, recipe)['name']}" if dataset is not None or recipe is not None else None


def with_kind(values: Values, settings: Sequence[str]) -> Values:
    """Return raw recipe values with settings applied; settings that name another kind of model start from its defaults.

    What the recipe says of the model belongs to the recipe's own kind.
    """
    changed = with_settings(values, settings)
    sections = [section for each in (values, changed) if isinstance(section := each.get("model", {}), dict)]
    if len(sections) == 2 and kind_of(sections[0]) != kind_of(sections[1]):
        return with_settings({**values, "model": {}}, settings)
    return changed


def recipe_of_run(run: str, dataset: str | None) -> Values | None:
    """Return the recipe that a run directory was made with; None if nothing was run there.

    InputError if it was made with another data set than the named one.
    """
    recorded = read_recorded_run(storage.absolute(run), whole=True)
    if recorded is None:
        return None
    url = recorded.recipe["data"]
    if dataset is not None and storage.absolute(data_url(dataset)) != storage.absolute(url):
        raise InputError(f"{run} was made with the data set {url}; name that one, or another --run")
    return with_new_sections(dict(recorded.recipe))


def method_names(asked: Sequence[str] | None) -> tuple[str, ...]:
    """Parse the values of --method, e.g. "a,b" and "c"; return the names in the order of the registry.

    InputError for an unknown method.
    """
    names = [name.strip() for value in asked or ["mucs"] for name in value.split(",") if name.strip()]
    if not names:
        raise InputError(f"--method names no method; known: {', '.join(all_methods())}")
    for name in names:
        find_method(name)
    return tuple(name for name in available_methods(names) if name in names)


def raw_recipe(dataset: str | None, recipe: str | None) -> Values:
    """Read a recipe by name or file; without one, the recipe with the name of the data set, or else "custom"."""
    if recipe is not None:
        values = read_recipe(recipe)
        return values if dataset is None else {**values, "data": data_url(dataset)}
    assert dataset is not None
    if dataset in recipe_names():
        return read_recipe(dataset)
    name = Dataset.open(dataset).card.request.get("name", "")  # of the source that it was prepared from
    own_name = dataset.rstrip("/").rsplit("/", 1)[-1]  # so that two data sets do not share a run directory
    return {**read_recipe(name if name in recipe_names() else CUSTOM), "data": dataset, "name": own_name}


def takes_small(values: Values, settings: Sequence[str], begun: str | None, address: str | None) -> bool:
    """Return whether the small recipe is taken where `values` are the default: there is no GPU, and no cluster either.

    A run that was begun keeps the network that it has, and settings of the model are meant for the large one.
    """
    if not is_custom(values):
        return False  # the data set has a recipe of its own
    recorded = read_recorded_run(storage.absolute(begun)) if begun is not None else None
    if recorded is not None:
        small, own = read_recipe(SMALL)["model"], recorded.recipe["model"]
        return all(own.get(key) == small[key] for key in ("width", "depth", "num_heads"))
    if any(setting.startswith("model.") for setting in settings):
        return False
    import torch  # here, for bad input and what only looks at a run do without it

    return not torch.cuda.is_available() and cluster_address(address) == "local"


def is_custom(values: Values) -> bool:
    """Return whether the raw values are those of the recipe for data sets that have none of their own."""
    large = read_recipe(CUSTOM)
    return all(values.get(section) == large.get(section) for section in large.keys() - {"name", "data"})


def data_url(dataset: str) -> str:
    """Return the URL of a data set that the command line names by its recipe or its URL."""
    return str(read_recipe(dataset)["data"]) if dataset in recipe_names() else dataset


def open_dataset(url: str, console: Console) -> Dataset:
    """Open a prepared data set; the embedded one is prepared first if it is absent."""
    if url == read_recipe(EMBEDDED)["data"] and not storage.exists(storage.join(url, "card.json")):
        return prepare_data(EMBEDDED, None, url, None, console=console)
    return Dataset.open(url)


def prepare_data(
    name: str,
    source: str | None,
    out: str,
    size: int | None,
    *,
    choices: Choices | None = None,
    rows_per_unit: int | None = None,
    console: Console,
    address: str | None = None,
    verbose: bool = False,
) -> Dataset:
    """Prepare a data set, decoding large sources through Ray Data."""
    from mucs_ray.engine.preparing import executor

    load_source(name)
    console.print(f"preparing {escape(name)} at {escape(out)}", highlight=False, soft_wrap=True)
    execute = executor(address, console, verbose=verbose)
    return prepare(
        name, where=source, out=out, size=size, choices=choices, rows_per_unit=rows_per_unit, execute=execute
    )
