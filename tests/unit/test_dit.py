"""The network against spec 3.2 and 3.3: names, shapes, counts, and the parts that a shape cannot tell apart."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mucs_ray.models.dit import (
    Block,
    DiT,
    DiTConfig,
    FinalNorm,
    PatchConv,
    PatchConvTranspose,
    position_table,
    unlearned_names,
)
from mucs_ray.models.dit_edm import DiTEDM

CIFAR10 = DiTConfig()
ARTBENCH10 = DiTConfig(image_size=64, channels=(16, 16), strides=(1, 2), condition_dim=10)
COCO = DiTConfig(image_size=64, channels=(16, 16), strides=(1, 2), condition_dim=768, condition_channels=1024)
PAPER = {"CIFAR10": CIFAR10, "ArtBench10": ARTBENCH10, "COCO": COCO}

# Spec 3.3, one row a tensor: name, then its shape in CIFAR10, ArtBench10 and COCO ("-" = not there, "=" = as before).
# `N` in a name runs over 0..11; a star marks the tensors that unlearning changes (bold in the spec).
TABLE = """
encoder.0.norm1.weight                 3           =            =
encoder.0.norm1.bias                   3           =            =
encoder.0.norm2.weight                 8           32           =
encoder.0.norm2.bias                   8           32           =
encoder.0.conv1.weight                 8,3,1,1     32,3,1,1     =
encoder.0.conv1.bias                   8           32           =
encoder.0.conv2.weight                 4,8,5,5     16,32,5,5    =
encoder.0.conv2.bias                   4           16           =
encoder.0.skip.weight                  4,3,1,1     16,3,1,1     =
encoder.0.skip.bias                    4           16           =
encoder.1.norm1.weight                 4           16           =
encoder.1.norm1.bias                   4           16           =
encoder.1.norm2.weight                 8           32           =
encoder.1.norm2.bias                   8           32           =
encoder.1.conv1.weight                 8,4,1,1     32,16,2,2    =
encoder.1.conv1.bias                   8           32           =
encoder.1.conv2.weight                 4,8,5,5     16,32,5,5    =
encoder.1.conv2.bias                   4           16           =
encoder.1.skip.weight                  -           16,16,2,2    =
encoder.1.skip.bias                    -           16           =
decoder.0.norm1.weight                 4           16           =
decoder.0.norm1.bias                   4           16           =
decoder.0.norm2.weight                 8           32           =
decoder.0.norm2.bias                   8           32           =
decoder.0.conv1.weight                 4,8,1,1     16,32,2,2    =
decoder.0.conv1.bias                   8           32           =
decoder.0.conv2.weight                 4,8,5,5     16,32,5,5    =
decoder.0.conv2.bias                   4           16           =
decoder.0.skip.weight                  -           16,16,2,2    =
decoder.0.skip.bias                    -           16           =
decoder.1.norm1.weight                 4           16           =
decoder.1.norm1.bias                   4           16           =
decoder.1.norm2.weight                 24          32           =
decoder.1.norm2.bias                   24          32           =
decoder.1.conv1.weight                 4,24,1,1    16,32,1,1    =
decoder.1.conv1.bias                   24          32           =
decoder.1.conv2.weight                 12,24,5,5   12,32,5,5    =
decoder.1.conv2.bias                   12          12           =
decoder.1.skip.weight                  4,12,1,1    16,12,1,1    =
decoder.1.skip.bias                    12          12           =
last.proj.weight                       3,12        3,12         =
x_embedder.proj.weight                 768,4,2,2   768,16,2,2   =
x_embedder.proj.bias                   768         768          =
pos_enc.extra                          32,768      =            =
pos_enc.emb                            1,256,768   =            =
s_embedder.mlp.0.weight                256,256     =            1024,256
s_embedder.mlp.0.bias                  256         =            1024
s_embedder.freq                        128         =            =
s_embedder.mlp.2.weight                256,256     =            1024,1024
s_embedder.mlp.2.bias                  256         =            1024
y_embedder.xdrop                       -           10           768
y_embedder.emb_mlp.0.weight*           -           256,10       1024,768
y_embedder.emb_mlp.0.bias              -           256          1024
y_embedder.emb_mlp.3.weight*           -           256,256      1024,1024
y_embedder.emb_mlp.3.bias              -           256          1024
a_embedder.emb.weight                  2,256       2,256        2,1024
dit_backbone.N.attention.qkv.weight    2304,768    =            =
dit_backbone.N.attention.proj.weight   768,768     =            =
dit_backbone.N.attention.proj.bias     768         =            =
dit_backbone.N.mlp.0.weight*           3072,768    =            =
dit_backbone.N.mlp.0.bias              3072        =            =
dit_backbone.N.mlp.3.weight*           768,3072    =            =
dit_backbone.N.mlp.3.bias              768         =            =
dit_backbone.N.adapter.adapter.1.weight 4608,256   =            4608,1024
dit_backbone.N.adapter.adapter.1.bias  4608        =            4608
dit_final.adapter.adapter.1.weight     1536,256    =            1536,1024
dit_final.adapter.adapter.1.bias       1536        =            1536
unpatchify.proj.weight                 768,4,2,2   768,16,2,2   =
unpatchify.proj.bias                   4           16           =
"""
BUFFERS = {"pos_enc.emb", "s_embedder.freq"}
ZERO_AT_START = ("conv2.weight", "conv2.bias", "last.proj.weight", ".adapter.1.weight", ".adapter.1.bias")


def spec_table(dataset: str) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Name -> (shape, unlearned), read from the table above."""
    column = list(PAPER).index(dataset)
    rows: dict[str, tuple[tuple[int, ...], bool]] = {}
    for line in TABLE.split("\n")[1:-1]:
        name, *cells = line.split()
        for at in (1, 2):
            cells[at] = cells[at - 1] if cells[at] == "=" else cells[at]
        if cells[column] == "-":
            continue
        shape = tuple(int(size) for size in cells[column].split(","))
        for block in range(12) if "N" in name else [0]:
            rows[name.rstrip("*").replace("N", str(block))] = shape, name.endswith("*")
    return rows


def on_meta(config: DiTConfig) -> DiT:
    with torch.device("meta"):
        return DiT(config)


def small(**changes: object) -> DiT:
    """A narrow network whose every tensor is random, so that nothing is zero by construction."""
    torch.manual_seed(0)
    values = {"width": 32, "depth": 2, "num_heads": 2, "registers": 3, "condition_channels": 8, **changes}
    network = DiT(DiTConfig(**values)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    return network


def inputs(size: int = 32, batch: int = 2) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=stream), torch.randn(batch, generator=stream)


@pytest.mark.parametrize("dataset", PAPER)
def test_names_and_shapes_are_those_of_the_spec(dataset: str):
    found = {name: tuple(tensor.shape) for name, tensor in on_meta(PAPER[dataset]).state_dict().items()}
    assert found == {name: shape for name, (shape, _) in spec_table(dataset).items()}


@pytest.mark.parametrize("dataset", PAPER)
def test_only_the_two_tables_are_buffers(dataset: str):
    network = on_meta(PAPER[dataset])
    assert {name for name, _ in network.named_buffers()} == BUFFERS
    assert {name for name, _ in network.named_parameters()} == spec_table(dataset).keys() - BUFFERS


@pytest.mark.parametrize(
    ("dataset", "tensors", "parameters", "unlearned"),
    [
        ("CIFAR10", 157, 99_787_890, 56_623_104),
        ("ArtBench10", 166, 99_975_788, 56_691_200),
        ("COCO", 166, 146_574_690, 58_458_112),
    ],
)
def test_counts(dataset: str, tensors: int, parameters: int, unlearned: int):
    found = dict(on_meta(PAPER[dataset]).named_parameters())
    assert len(found) == tensors
    assert sum(tensor.numel() for tensor in found.values()) == parameters
    assert sum(found[name].numel() for name in unlearned_names(on_meta(PAPER[dataset]))) == unlearned


@pytest.mark.parametrize("dataset", PAPER)
def test_unlearned_names_are_exactly_the_bold_ones(dataset: str):
    names = unlearned_names(on_meta(PAPER[dataset]))
    assert len(names) == len(set(names))
    assert set(names) == {name for name, (_, bold) in spec_table(dataset).items() if bold}


@pytest.mark.parametrize("condition_dim", [0, 6])
def test_what_starts_at_zero(condition_dim: int):
    torch.manual_seed(0)
    network = DiT(DiTConfig(width=32, depth=2, num_heads=2, condition_dim=condition_dim))
    for name, parameter in network.named_parameters():
        starts_at_zero = name.endswith((*ZERO_AT_START, "pos_enc.extra", ".xdrop"))
        affine_bias = ".norm" in name and name.endswith("bias")
        assert bool((parameter == 0).all()) == (starts_at_zero or affine_bias), name


@pytest.mark.parametrize(("size", "strides"), [(32, (1, 1)), (64, (1, 2))])
def test_at_the_start_the_denoised_image_is_c_skip_times_the_noisy_one(size: int, strides: tuple[int, int]):
    network = DiT(DiTConfig(image_size=size, strides=strides, width=32, depth=2, num_heads=2, condition_dim=3))
    noisy, _ = inputs(size)
    sigma = torch.tensor([0.5, 2.0])
    skip = torch.tensor([0.25 / 0.5, 0.25 / 4.25])[:, None, None, None]
    denoised = DiTEDM(network.eval())(noisy, sigma, {"condition": torch.ones(2, 3)})
    torch.testing.assert_close(denoised, skip * noisy, rtol=0, atol=0)


def test_position_table_by_hand():
    table = position_table(3, 8)[0]
    slow = 10000.0**-0.5  # omega_i = 10000^(-i/2), i = 0, 1
    for row in range(3):
        for column in range(3):
            for half, index in ((0, column), (4, row)):
                expected = [math.sin(index), math.sin(index * slow), math.cos(index), math.cos(index * slow)]
                torch.testing.assert_close(table[3 * row + column, half : half + 4], torch.tensor(expected))


def test_position_table_of_the_paper():
    table = position_table(16, 768)[0]
    row, column, i = 5, 11, 100
    angle = 10000.0 ** (-i / 192)
    token = table[16 * row + column]
    expected = [math.sin(column * angle), math.cos(column * angle), math.sin(row * angle), math.cos(row * angle)]
    torch.testing.assert_close(token[[i, 192 + i, 384 + i, 576 + i]], torch.tensor(expected))


def test_noise_features_by_hand():
    network = small()
    frequencies = [2 * math.pi * (math.exp(k / 128) - 1) / (math.e - 1) for k in range(1, 129)]
    level = -0.37
    angles = torch.tensor([level * f for f in frequencies], dtype=torch.float64)
    features = torch.cat([angles.sin(), angles.cos()]).float()
    w = network.s_embedder.state_dict()
    hidden = features @ w["mlp.0.weight"].t() + w["mlp.0.bias"]
    expected = (hidden * torch.sigmoid(hidden)) @ w["mlp.2.weight"].t() + w["mlp.2.bias"]
    torch.testing.assert_close(network.s_embedder(torch.tensor([level]))[0], expected)


def test_registers_come_first_and_have_no_position():
    network = small(registers=3)
    tokens = torch.randn(2, 256, 32)
    out = network.pos_enc(tokens)
    torch.testing.assert_close(out[:, :3], network.pos_enc.extra.expand(2, 3, 32), rtol=0, atol=0)
    torch.testing.assert_close(out[:, 3:], tokens + position_table(16, 32), rtol=0, atol=0)


def test_the_first_tokens_are_the_ones_dropped():
    """With attention and MLP off, registers reach nothing; if the wrong end were cut, they would reach the image."""
    network = small(registers=3)
    with torch.no_grad():
        for name, parameter in network.dit_backbone.named_parameters():
            if ".adapter." in name:
                parameter.zero_()
    x, level = inputs()
    before = network(x, level)
    with torch.no_grad():
        network.pos_enc.extra.normal_()
    torch.testing.assert_close(network(x, level), before, rtol=0, atol=0)


def test_a_token_stays_at_its_place():
    """A change in one patch, with attention and the 5x5 convolutions off, changes that patch of the output only."""
    network = small()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attention.proj" in name or "conv2" in name:
                parameter.zero_()
    x, level = inputs(batch=1)
    changed = x.clone()
    changed[0, :, 6:8, 20:22] += 1  # row 3, column 10
    difference = (network(changed, level) - network(x, level))[0].abs().amax(0)
    assert difference[6:8, 20:22].min() > 1e-4
    difference[6:8, 20:22] = 0
    assert difference.max() == 0


def test_zero_and_absent_condition_are_the_null_vector():
    network = small(condition_dim=5)
    x, level = inputs()
    null = network.y_embedder.xdrop.detach()
    assert null.square().sum() > 1e-8
    expected = network(x, level, null.expand(2, 5))
    torch.testing.assert_close(network(x, level, torch.zeros(2, 5)), expected, rtol=0, atol=0)
    torch.testing.assert_close(network(x, level, None), expected, rtol=0, atol=0)
    torch.testing.assert_close(network(x, level, torch.full((2, 5), 1e-5)), expected, rtol=0, atol=0)
    assert (network(x, level, torch.full((2, 5), 1e-3)) - expected).abs().max() > 1e-4


def test_null_is_decided_item_by_item():
    network = small(condition_dim=5)
    x, level = inputs()
    mixed = torch.tensor([[0.0] * 5, [1.0] * 5])
    out = network(x, level, mixed)
    torch.testing.assert_close(out[:1], network(x[:1], level[:1], None))
    torch.testing.assert_close(out[1:], network(x[1:], level[1:], mixed[1:]))


def test_an_unconditional_network_ignores_the_condition():
    network = small(condition_dim=0)
    x, level = inputs()
    torch.testing.assert_close(network(x, level, torch.ones(2, 7)), network(x, level, None), rtol=0, atol=0)


def test_conditions_are_dropped_in_training_only():
    embed = small(condition_dim=5, condition_drop=0.1, dropout=0.0).y_embedder
    conditions = torch.ones(4000, 5)
    kept, null = embed(conditions[:1]), embed(torch.zeros(1, 5))
    torch.testing.assert_close(embed(conditions), kept.expand(4000, -1))
    in_training = embed.train()(conditions)
    dropped = (in_training - null).abs().amax(dim=1) < 1e-5
    intact = (in_training - kept).abs().amax(dim=1) < 1e-5
    assert bool((dropped ^ intact).all())
    assert 0.075 < dropped.float().mean() < 0.125  # 5 standard deviations around 0.1


def test_augmented_flag_selects_its_vector():
    network = small()
    x, level = inputs()
    assert (network(x, level, None, torch.ones(2, dtype=torch.long)) - network(x, level)).abs().max() > 1e-4
    torch.testing.assert_close(network(x, level, None, torch.zeros(2, dtype=torch.long)), network(x, level))
    with torch.no_grad():
        network.a_embedder.emb.weight[1] = network.a_embedder.emb.weight[0]
    torch.testing.assert_close(network(x, level, None, torch.ones(2, dtype=torch.long)), network(x, level))


def test_modulation_order_by_hand():
    """Six constants in the order (gate1, scale1, shift1, gate2, scale2, shift2), attention and MLP made linear."""
    width = 4
    config = DiTConfig(width=width, num_heads=1, condition_channels=2, mlp_ratio=1)
    block = Block(config).eval()
    gate1, scale1, shift1, gate2, scale2, shift2 = 2.0, 3.0, 5.0, -7.0, 11.0, -13.0
    eye = torch.eye(width)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        constants = torch.tensor([gate1, scale1, shift1, gate2, scale2, shift2])
        block.get_parameter("adapter.adapter.1.bias").copy_(constants.repeat_interleave(width))
        block.attention.qkv.weight[2 * width :] = eye  # query = key = 0: every token gets the mean of the values
        block.attention.proj.weight.copy_(eye)
        block.get_parameter("mlp.0.weight").copy_(eye)
        block.get_parameter("mlp.3.weight").copy_(eye)
    x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(2))

    def norm(values: Tensor) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    middle = x + gate1 * (((1 + scale1) * norm(x) + shift1).mean(1, keepdim=True))
    inner = (1 + scale2) * norm(middle) + shift2
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    torch.testing.assert_close(block(x, torch.zeros(1, 2)), middle + gate2 * gelu)


def test_final_modulation_by_hand():
    final = FinalNorm(DiTConfig(width=4, condition_channels=2))
    with torch.no_grad():
        final.get_parameter("adapter.adapter.1.bias").copy_(torch.tensor([3.0] * 4 + [5.0] * 4))
    x = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    torch.testing.assert_close(final(x, torch.zeros(1, 2)), torch.tensor([[[9.0, 1.0, 9.0, 1.0]]]), rtol=0, atol=1e-5)


def test_dropout_is_off_in_eval_and_on_in_training():
    network = small(dropout=0.5)
    x, level = inputs()
    torch.testing.assert_close(network(x, level), network(x, level), rtol=0, atol=0)
    network.train()
    assert (network(x, level) - network(x, level)).abs().max() > 1e-4


@settings(max_examples=15, deadline=None)
@given(cin=st.integers(1, 5), cout=st.integers(1, 5), rate=st.integers(1, 3), side=st.integers(1, 3), up=st.booleans())
def test_patch_convolutions_equal_torchs(cin: int, cout: int, rate: int, side: int, up: bool):
    torch.manual_seed(cin + 10 * cout)
    if up:
        conv, reference = PatchConvTranspose(cin, cout, rate), functional.conv_transpose2d
        x = torch.randn(2, cin, side, side + 1)
    else:
        conv, reference = PatchConv(cin, cout, rate), functional.conv2d
        x = torch.randn(2, cin, rate * side, rate * (side + 1))
    torch.testing.assert_close(conv(x), reference(x, conv.weight, conv.bias, stride=rate), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_does_not_see_its_neighbours_in_the_batch(batch: int):
    network = small(condition_dim=5)
    x, level = inputs(batch=4)
    condition = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    whole = network(x, level, condition)
    torch.testing.assert_close(network(x[:batch], level[:batch], condition[:batch]), whole[:batch])
