"""The laws that every attribution method keeps, run by a plain loop over its hooks on a few images in memory.

They hold for the methods of the package, for the example in docs/your-own-method.md, and for whatever the environment
variable MUCS_RAY_CONTRACT names: MUCS_RAY_CONTRACT=my_method:MyMethod python -m pytest tests/contract
Axes: b training images, i items.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mucs_ray.attribution.base import Attributor, Columns, MethodContext, MethodSettings, Tensors
from mucs_ray.attribution.card import MethodCard, MethodStage, load_class
from mucs_ray.attribution.loss_change import select_measure
from mucs_ray.attribution.registry import METHODS, find_method
from mucs_ray.config.recipe import Recipe, build, for_method, with_values
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import for_each
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.samplers import draw_named
from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiT
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.ema import frozen_copy
from mucs_ray.training.order import batch_rows
from tiny import rows, tiny_recipe

PAGE = Path(__file__).parents[2] / "docs/your-own-method.md"
EXAMPLE = "my_method:MyMethod"
TOY = "toys:Brightness"
OWN = tuple(name for name, method in METHODS.items() if not method.is_ensemble)
ASKED = tuple(name for name in os.environ.get("MUCS_RAY_CONTRACT", "").split(",") if name)
NAMES = (*OWN, EXAMPLE, TOY, *ASKED)
HOOKS = ("features", "accumulate", "fit", "fit_item", "fit_together", "sample", "fit_screen", "score")
TOGETHER = ("mucs/screen", "mucs/control")
"""These learn something from all items: bounds, or how long a control is trained."""
WHOLE, CUT = [slice(0, 6)], [slice(0, 1), slice(1, 3), slice(3, 6)]
CPU = torch.device("cpu")
RECIPE = tiny_recipe(
    "nowhere",
    score={"noises": 4},
    method={
        "mucs": {"batch_size": 4, "null_batches": 1, "max_updates": 2},
        "dtrak": {"dim": 16, "noises": 3},
        "das": {"dim": 16, "noises": 3, "leverage": True},
        "mucs/linear": {"dim": 16, "noises": 3},
        "kfac": {"noises": 3, "factor_draws": 2},
        "abu": {"draws": 4, "draws_per_forward": 2, "fisher_draws": 2},
        "forward-inf": {"updates": 2, "draws": 4},
    },
)


@pytest.fixture(scope="module", autouse=True)
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Return the method of the documentation, as a user's file."""
    folder = tmp_path_factory.mktemp("example")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (folder / "my_method.py").write_text(code)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@cache
def images() -> Batch:
    """Return 6 training images of the tiny data set."""
    made = rows(6, first_idx=0, seed=1)
    pixels = torch.from_numpy(np.stack([row.image for row in made])).float() / 127.5 - 1
    return Batch(idx=torch.arange(6), z=pixels, condition={"condition": torch.eye(3)[[row.label for row in made]]})


@cache
def f1() -> DiTEDM:
    """Return F1, frozen, with an output that depends on all its inputs and parameters."""
    denoiser = frozen_copy(DiTEDM(DiT(RECIPE.model)))
    for number, parameter in enumerate(denoiser.parameters()):
        parameter.copy_(0.1 * normal(generator(3, f"parameter={number}"), *parameter.shape))
    return denoiser


def items(num: int) -> list[Item]:
    """Return items that MUCS can unlearn.

    They are faint, so that their loss is below the null loss, and reach outside [-1, 1].
    """
    made = [0.3 * normal(generator(8, f"item={number}"), 3, 8, 8) for number in range(num)]
    for image in made:
        image[0, 0, 0] = 1.5
    return [
        Item(number=at, idx=900 + at, condition={"condition": torch.eye(3)[at]}, z=image)
        for at, image in enumerate(made)
    ]


def items_for(method: MethodCard, num: int) -> list[Item]:
    """Return items that the method can explain: one that asks how they were generated gets generated ones."""
    if not method.settings.get("method.mucs.trajectory"):
        return items(num)
    return [
        replace(item, z=draw_named(f1(), for_each(item.condition, 1), [item.idx], RECIPE.generate, RECIPE.seed)[0])
        for item in items(num)
    ]


def recipe_of(method: MethodCard) -> Recipe:
    """Return a recipe with the method's settings, and no more than 3 updates."""
    recipe = for_method(RECIPE, method)
    generated = recipe.method["mucs"].trajectory > 0  # by an untrained model, and so as good as unlearned
    updates = 2 if generated else min(3, recipe.method["mucs"].fixed_updates)
    return with_values(recipe, {"method.mucs.fixed_updates": updates})


def picked(batch: Batch, rows: list[int]) -> Batch:
    return batch[torch.tensor(rows)]


def encode(pictures: Tensor) -> Tensor:
    """Stand in for CLIP or DINO: make unit vectors, one image at a time, and refuse what is not in [0, 1]."""
    assert pictures.min() >= 0 and pictures.max() <= 1
    weights = normal(generator(4, "encoder"), pictures[0].numel(), 6)
    return torch.stack(
        [torch.nn.functional.normalize(torch.tanh(each.flatten() @ weights), dim=0) for each in pictures]
    )


# --- the plain loop -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Loop:
    """This runs a method on some images and items; each hook has a worker of its own, with what its stage needs."""

    method: MethodCard
    images: Batch
    items: list[Item]
    settings: MethodSettings

    def worker(self, part: MethodStage | None) -> Attributor:
        """Build what a worker builds for a stage; for a method without stages, what the ranking builds."""
        kind = load_class((part.owner if part else "") or self.method.implementation)
        streamed = part is None or part.hook in ("features", "accumulate", "sample", "fit_screen", "score")
        context = MethodContext(
            settings=self.settings,
            device=CPU,
            num_images=len(self.images),
            items=self.items if part is None or part.uses_items else (),
            denoiser=f1() if part is not None and part.uses_model else None,
            batches=None if streamed else self.batches,
            encode=encode if self.method.encoder else None,
        )
        return kind(context)

    def batches(self, name: str, size: int) -> Callable[[int], Batch]:
        def batch(step: int) -> Batch:
            rows = batch_rows(1, name, step, num_images=len(self.images), batch_size=size)
            return picked(self.images, rows.tolist())

        return batch

    def parts(self, owner: str = "") -> dict[str, MethodStage]:
        """Return the stages by their hooks; of two with the same hook, that of this owner."""
        return {part.hook: part for part in sorted(self.method.stages, key=lambda part: part.owner == owner)}

    def features(self, cuts: list[slice]) -> Columns:
        """Return the features of all images."""
        hooked = self.worker(self.parts()["features"])
        made = [hooked.features(self.images[cut]) for cut in cuts]
        return {"idx": self.images.idx, **{name: torch.cat([each[name] for each in made]) for name in made[0]}}

    @cached_property
    def rows(self) -> Batch | Columns:
        """Return what the hooks after `features` are given: only idx, if the card lists no stages."""
        if not self.parts():
            blank = torch.zeros(len(self.images), 3, 0, 0)
            return Batch(idx=self.images.idx, z=blank, condition={})
        return self.features(WHOLE) if "features" in self.parts() else self.images

    def sums(self, cuts: list[slice]) -> Tensors:
        """Return the sums over all rows, in float64."""
        hooked, rows, sums = self.worker(self.parts()["accumulate"]), self.rows, {}
        for at in cuts:
            for name, tensor in hooked.accumulate(cut(rows, at)).items():
                sums[name] = sums.get(name, 0) + tensor.double()
        return sums

    def fitted(self, cuts: list[slice], owner: str = "") -> Tensors:
        """Return what is fitted once a run, for stages of this owner."""
        parts = self.parts(owner)
        sums = self.sums(cuts) if "accumulate" in parts else {}
        if "fit" not in parts:
            return sums
        rows = self.rows_of(parts["fit"])
        return self.worker(parts["fit"]).fit(sums, (cut(rows, at) for at in cuts))

    def rows_of(self, part: MethodStage) -> Batch | Columns:
        """Return what a stage streams: an owner knows nothing of another method's features."""
        return self.images if part.owner else self.rows

    @cached_property
    def once(self) -> Tensors:
        return self.fitted(WHOLE)

    @cached_property
    def of_items(self) -> list[Tensors]:
        """Return what is fitted for each item, by a worker of its own."""
        if "fit_item" not in self.parts():
            return [{} for _ in self.items]
        part = self.parts()["fit_item"]
        fitted = self.fitted(WHOLE, part.owner) if part.owner else self.once
        return [self.worker(part).fit_item(item, fitted, lambda step, loss: None).tensors for item in self.items]

    @cached_property
    def scorer(self) -> Attributor:
        """Return the method, ready to score."""
        if not self.parts():
            return self.worker(None)  # nothing is loaded: it has but idx
        hooked = self.worker(self.parts()["score"])
        hooked.load(self.screen if "fit_screen" in self.parts() else self.together, self.of_items)
        return hooked

    @cached_property
    def together(self) -> Tensors:
        """Return what is fitted once a run, in the end from what all items have."""
        if "fit_together" not in self.parts():
            return self.once
        return self.worker(self.parts()["fit_together"]).fit_together(self.once, self.of_items)

    @cached_property
    def screen(self) -> Tensors:
        """Return the screen, fitted on a random sample that here is everything."""
        sampler = self.worker(self.parts()["sample"])
        sampler.load(self.once, self.of_items)
        assert sampler.in_sample(self.images.idx.numpy()).all()
        return self.worker(self.parts()["fit_screen"]).fit_screen(iter([sampler.sample(self.images)]))

    @cached_property
    def columns(self) -> Columns:
        """Return the columns of all rows at once."""
        return self.scorer.columns(self.rows)


def cut(rows: Batch | Columns, at: slice | list[int]) -> Any:
    if isinstance(rows, Batch):
        return rows[at] if isinstance(at, slice) else rows[torch.tensor(at)]
    return {name: column[at] for name, column in rows.items()}


def fresh(name: str, *, num_items: int = 2, settings: MethodSettings | None = None) -> Loop:
    method = find_method(name)
    return Loop(
        method=method, images=images(), items=items_for(method, num_items), settings=settings or recipe_of(method)
    )


loop = cache(fresh)
"""What was made for one test serves the next."""


def scores_of(columns: Columns, measure: str = "skew") -> Tensor:
    """Return what is ranked: "score", or for methods that compare losses the column that `rank.measure` names."""
    return columns["score"] if "score" in columns else select_measure(columns, measure)


def same(one: Columns, other: Columns) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what a method says of itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_single_lines(name: str):
    method = find_method(name)
    texts = {fact: getattr(method, fact) for fact in ("name", "label", "summary", "needs")}
    if name in OWN:
        texts |= {"cost": method.cost, "source": method.source}
    assert {
        fact: text for fact, text in texts.items() if not text.strip() or text.strip() != text or "\n" in text
    } == {}
    assert method.name == name
    assert method.weights == {}


@pytest.mark.parametrize("name", OWN)
def test_the_class_and_its_card_belong_together(name: str):
    """A variant shares both with the method it varies."""
    method = find_method(name)
    card = method.load().card
    same_facts = {key: getattr(card, key) for key in ("stages", "encoder", "needs", "implementation")}
    assert {key: getattr(method, key) for key in same_facts} == same_facts
    assert method.name == card.name or method.name.startswith((f"{card.name}/", f"{card.name}-"))


def test_names_and_labels_differ():
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    assert all(re.fullmatch(r"[\w.=-]+(/[\w.=-]+)?", name) for name in METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_well_formed(name: str):
    """A card lists each hook at most once, in the order in which they run, the scoring last, and every hook that is
    written; so does the card whose stages it takes over.
    """
    method = find_method(name)
    kind = method.load()
    hooks = [part.hook for part in method.stages]
    for owner in {part.owner for part in method.stages}:
        owned = [part.hook for part in method.stages if part.owner == owner]
        assert owned == [hook for hook in HOOKS if hook in owned]
    assert hooks == [] or hooks[-1] == "score"
    assert len({part.name for part in method.stages}) == len(method.stages)
    assert all(re.fullmatch(r"[a-z0-9_-]+", part.name) for part in method.stages)
    written = {hook for hook in HOOKS[:-1] if getattr(kind, hook) is not getattr(Attributor, hook)}
    assert written == {part.hook for part in method.stages if not part.owner} - {"score"}


def recipe_keys(recipe: Recipe) -> set[str]:
    shared = recipe.to_dict()
    own = shared.pop("method")
    sections = shared | {f"method.{name}": values for name, values in own.items()}
    later = {f"model.{field.name}" for field in fields(recipe.model)}  # some are not stored at their default
    return later | {f"{key}.{inner}" for key, value in sections.items() if isinstance(value, dict) for inner in value}


def named(reads: tuple[str, ...], recipe: Recipe) -> set[str]:
    """Return sections and dotted keys as dotted keys."""
    return {key for key in recipe_keys(recipe) if key in reads or key.rpartition(".")[0] in reads}


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_reads_name_what_a_recipe_has(name: str):
    method = find_method(name)
    keys = recipe_keys(recipe_of(method))
    assert {*method.settings} <= keys
    assert {read for part in method.stages for read in part.reads} <= keys | {key.rpartition(".")[0] for key in keys}
    values = recipe_of(method).to_dict()
    assert build(values, [name]).to_dict() == values


def recorded(recipe: Recipe, seen: set[str]) -> Recipe:
    """Return the same values, which record every key that is read."""

    def section(name: str, values: Any) -> Any:
        keys = {each.name for each in fields(values)}

        class Recording(type(values)):
            def __getattribute__(self, key: str) -> Any:
                if key in keys:
                    seen.add(f"{name}.{key}")
                return super().__getattribute__(key)

        return Recording(**{key: getattr(values, key) for key in keys})

    sections = {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    noted = {key: section(key, each) for key, each in sections.items() if is_dataclass(each)}
    return replace(recipe, **noted, method={key: section(f"method.{key}", own) for key, own in recipe.method.items()})


@pytest.mark.parametrize("name", NAMES)
def test_a_knob_that_is_read_is_named(name: str):
    """Each stage names the keys that it reads, or an earlier stage does; else a changed value would leave finished
    stages.
    """
    seen: set[str] = set()
    method = find_method(name)
    run = fresh(name, settings=recorded(recipe_of(method), seen))
    made, allowed = dict[str, Tensors](), set[str]()
    item_states: list[Tensors] = [{} for _ in run.items]
    sample: Columns = {}
    for part in method.stages:
        hooked = run.worker(part)
        rows, fitted = run.rows_of(part), made.get(part.owner, next(reversed(made.values()), {}))
        seen.clear()
        match part.hook:
            case "features":
                hooked.features(run.images)
            case "accumulate":
                made[part.owner] = hooked.accumulate(rows)
            case "fit":
                made[part.owner] = hooked.fit(made.get(part.owner, {}), iter([rows]))
            case "fit_item":
                item_states = [hooked.fit_item(item, fitted, lambda step, loss: None).tensors for item in run.items]
            case "fit_together":
                made[part.owner] = hooked.fit_together(fitted, item_states)
            case "sample":
                hooked.load(fitted, item_states)
                hooked.in_sample(run.images.idx.numpy())
                sample = hooked.sample(run.images)
            case "fit_screen":
                made[part.owner] = hooked.fit_screen(iter([sample]))
            case "score":
                hooked.load(fitted, item_states)
                hooked.columns(rows)
        # the shape comes with the weights, and how items were generated with the items
        known = [*(["model"] if part.uses_model else []), *(["generate"] if part.uses_items else [])]
        allowed |= named((*part.reads, *known), recipe_of(method))
        assert seen - allowed == set(), f"{name}: the part {part.name} does not name them in `reads`"


def run_hooks(method: MethodCard) -> set[str]:
    return {part.hook for part in method.stages}


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_counts_its_passes(name: str):
    """For `mucs-ray plan`: more for more images or items; a method of the package counts each part with the model,
    which the scoring of features uses for its weights alone.
    """
    method = find_method(name)
    recipe = recipe_of(method)
    for part in method.stages:
        kind = load_class(part.owner or method.implementation)
        few, many = (kind.passes(part, recipe, num_images=num, num_items=num) for num in (5, 50))
        assert 0 <= few.forwards <= many.forwards and 0 <= few.backwards <= many.backwards
        if name in OWN and part.uses_model and (part.hook != "score" or "features" not in run_hooks(method)):
            assert many.forwards + many.backwards >= few.forwards + few.backwards > 0
            assert part.hook == "fit_together" or many != few


# --- scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_a_row_an_image_and_a_column_an_item(name: str):
    run = loop(name, num_items=3)
    scorer, rows = run.scorer, run.rows
    columns = run.columns
    scores = scores_of(columns, run.settings.rank.measure)
    assert scores.shape == (6, 3) and scores.dtype == torch.float32
    assert all(len(column) == 6 and column.device == CPU and not column.requires_grad for column in columns.values())
    assert all(column.isfinite().all() for column in columns.values())
    assert torch.equal(scorer.score(rows).float().cpu(), scores)
    assert scorer.forwards(columns) >= 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "condition"])
def test_scores_tell_images_and_items_apart(name: str):
    scores = scores_of(loop(name).columns)
    assert all(len(column.unique()) > 3 for column in scores.T)
    assert not torch.equal(scores[:, 0], scores[:, 1])


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_how_the_images_are_cut_bit_for_bit(name: str):
    run = loop(name)
    scorer, rows = run.scorer, run.rows
    whole = run.columns
    made = [scorer.columns(cut(rows, at)) for at in CUT]
    assert same({key: torch.cat([each[key] for each in made]) for key in whole}, whole)
    if "features" in run.parts():
        assert same(run.features(CUT), rows)


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_order_of_the_images_bit_for_bit(name: str):
    order = [3, 0, 2, 5, 1, 4]
    run = loop(name)
    scorer, rows = run.scorer, run.rows
    assert same(scorer.columns(cut(rows, order)), cut(run.columns, order))
    if "features" in run.parts():
        assert same(replace(run, images=picked(run.images, order)).features(WHOLE), cut(rows, order))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_summed_depends_on_the_cut_by_rounding_alone(name: str):
    run = loop(name)
    whole, pieces = run.once, run.fitted(CUT)
    assert whole.keys() == pieces.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(pieces[key], tensor, rtol=1e-5, atol=1e-6 * tensor.abs().max().item())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TOGETHER])
def test_an_item_does_not_depend_on_the_others_bit_for_bit(name: str):
    """Items keep their place, because each loss with draws of its own depends on it."""
    alone, both, three = (loop(name, num_items=num).columns for num in (1, 2, 3))
    for measure in ("skew", "difference"):
        scores = [scores_of(columns, measure) for columns in (alone, both, three)]
        assert torch.equal(scores[0], scores[1][:, :1])
        assert torch.equal(scores[1], scores[2][:, :2])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_again_gives_the_same_bits(name: str):
    """A resumed run makes again what was lost, and here each hook runs again in a worker of its own."""
    one, other = loop(name), fresh(name)
    torch.manual_seed(1)
    for first, again in zip(
        (one.once, *one.of_items, one.columns), (other.once, *other.of_items, other.columns), strict=True
    ):
        assert same(first, again)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_lent_stays_as_it_was(name: str):
    """F1, the images, the items, and what earlier stages made stay; on a CPU that memory cannot be written to."""
    run = fresh(name, num_items=1)
    lent = {
        **dict(f1().state_dict()),
        "batch.image": run.images.z,
        **{f"batch.{name}": tensor for name, tensor in run.images.condition.items()},
        **{f"item.{item.number}": item.z for item in run.items},
        **{f"fitted.{key}": tensor for key, tensor in run.once.items()},
        **{f"item_states.{key}": tensor for key, tensor in run.of_items[0].items()},
    }
    before = {key: tensor.clone() for key, tensor in lent.items()}
    places = [parameter.data_ptr() for parameter in f1().parameters()]
    assert len(run.columns) > 0
    assert same(lent, before)
    assert [parameter.data_ptr() for parameter in f1().parameters()] == places
    assert not f1().training and not any(parameter.requires_grad for parameter in f1().parameters())


# --- whether the laws can be broken -------------------------------------------------------------------------------


class Careless(Attributor):
    """This method reads a knob that it does not name; its scores depend on the batch and on torch's own stream."""

    card = MethodCard(name="careless", label="Careless", summary="breaks the contract")

    def score(self, rows: Batch) -> Tensor:
        brightness = rows.z.mean(dim=(1, 2, 3))[:, None] - rows.z.mean()
        noise = torch.rand(len(rows), len(self.context.items)) * self.context.settings.score.keep
        return brightness + noise


@pytest.mark.parametrize(
    "law",
    [
        test_a_knob_that_is_read_is_named,
        test_scores_do_not_depend_on_how_the_images_are_cut_bit_for_bit,
        test_scores_do_not_depend_on_the_order_of_the_images_bit_for_bit,
        test_the_same_again_gives_the_same_bits,
        test_an_item_does_not_depend_on_the_others_bit_for_bit,
    ],
)
def test_the_laws_detect_a_careless_method(law: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "careless", replace(Careless.card, implementation=f"{__name__}:Careless"))
    with pytest.raises(AssertionError):
        law("careless")


def test_what_is_no_method_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "no_methods.py").write_text(
        "from mucs_ray.attribution.base import Attributor\n"
        "class Nameless(Attributor):\n    pass\n"
        "def function():\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, message in [
        ("no_methods:Nameless", "lacks card, score"),
        ("no_methods:function", "is not a subclass"),
        ("no_methods:Absent", "no attribute"),
        ("no_such_module:Method", "No module"),
        ("muccs", "known: random"),
    ]:
        with pytest.raises(InputError, match=message) as refused:
            find_method(name)
        assert "\n" not in str(refused.value)
