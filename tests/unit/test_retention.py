"""Retention that knows the condition draws the share that it says, of images with the item's condition."""

from types import SimpleNamespace

import pytest
import torch

from mucs_ray.attribution import retention
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.attribution.retention import every_image, images_like, together, with_matched
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.errors import InputError


def batch(*idx: int, mask: bool = False) -> Batch:
    """Return images of which each is its idx everywhere, in the class idx mod 3."""
    numbers = torch.tensor(idx)
    z = numbers.float()[:, None, None].expand(-1, 2, 2)
    return Batch(
        idx=numbers, z=z, condition={"condition": torch.eye(3)[numbers % 3]}, mask=torch.ones_like(z) if mask else None
    )


def item(label: int | None = 1) -> Item:
    condition = {} if label is None else {"condition": torch.eye(3)[label]}
    return Item(number=4, idx=70, condition=condition, z=torch.zeros(2, 2))


def test_images_with_the_items_condition_by_hand():
    found = images_like(item(), iter([batch(0, 1, 2, 3, 4), batch(5, 6, 7)]))
    assert found.idx.tolist() == [1, 4, 7]
    assert found.z[:, 0, 0].tolist() == [1, 4, 7]
    assert torch.equal(found.condition["condition"], torch.eye(3)[[1, 1, 1]])


def test_no_more_are_read_than_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "MOST_MATCHED", 2)
    batches = iter([batch(1, 4, 7), batch(10)])
    assert images_like(item(), batches).idx.tolist() == [1, 4]
    assert next(batches).idx.tolist() == [10]


@pytest.mark.parametrize("label", [None, 2])
def test_a_condition_that_no_image_has_is_one_line(label: int | None):
    with pytest.raises(InputError, match=r"the condition of item 4, and no training image has it") as caught:
        images_like(item(label), iter([batch(0, 1), batch(3, 4)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.5, 4), (1.0, 8)])
def test_a_batch_has_the_share_of_them(share: float, count: int):
    """The rest are the first rows of the batch as it was; each step draws others, and the same again."""
    uniform, matched = batch(*range(0, 24, 3)), batch(*range(1, 46, 3))
    mixed = with_matched(lambda step: uniform, matched, share, seed=1, name="x")
    drawn = [mixed(step) for step in (0, 1)]
    for each in drawn:
        assert len(each) == 8
        assert each.idx[: 8 - count].tolist() == uniform.idx[: 8 - count].tolist()
        own = each.idx[8 - count :].tolist()
        assert len({*own}) == count and {number % 3 for number in own} == {1}
        assert each.z[:, 0, 0].tolist() == each.idx.tolist()
    assert drawn[0].idx.tolist() != drawn[1].idx.tolist()
    again = with_matched(lambda step: uniform, matched, share, seed=1, name="x")(1)
    assert torch.equal(again.idx, drawn[1].idx)
    other = with_matched(lambda step: uniform, matched, share, seed=1, name="y")(1)
    assert not torch.equal(other.idx, drawn[1].idx)


def test_few_images_are_drawn_more_than_once():
    mixed = with_matched(lambda step: batch(*range(8)), batch(1), 0.5, seed=1, name="x")
    assert mixed(0).idx.tolist() == [0, 1, 2, 3, 1, 1, 1, 1]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_unlearning_gets_these_batches(share: float):
    """Without a share these are the batches as they are drawn, and nothing else is read."""
    names: set[str] = set()

    def batches(name: str, size: int):
        names.add(name)
        return lambda step: batch(*range(step * size, (step + 1) * size))

    settings = SimpleNamespace(seed=1, method={"mucs": MUCSConfig(batch_size=4, retention=share)})
    context = MethodContext(settings=settings, device=torch.device("cpu"), num_images=14, batches=batches)
    drawn = MUCS(context).training_batches(item())(1)
    assert drawn.idx[:2].tolist() == [4, 5]
    if share:
        assert {*drawn.idx[2:].tolist()} < {1, 4, 7, 10, 13}
        assert names == {"unlearn/item=70", "unlearn/item=70/matched"}
    else:
        assert drawn.idx[2:].tolist() == [6, 7] and names == {"unlearn/item=70"}


@pytest.mark.parametrize(("num_images", "size"), [(14, 14), (210, 70), (211, 1)])
def test_all_images_are_looked_at_once(num_images: int, size: int):
    """Batches that do not divide the training set would leave out the last ones."""

    def batches(name: str, size: int):
        return lambda step: batch(*range(step * size, (step + 1) * size))

    context = MethodContext(settings=None, device=torch.device("cpu"), num_images=num_images, batches=batches)
    read = list(every_image(context, "x"))
    assert torch.cat([each.idx for each in read]).tolist() == [*range(num_images)]
    assert {len(each) for each in read} == {size}


def test_masks_come_along():
    assert together(batch(1), batch(2)).mask is None
    joined = together(batch(1, mask=True), batch(2, mask=True))
    assert joined.mask is not None and joined.mask.shape == joined.z.shape
