import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plainres import fields
from plainres.errors import UserError
from plainres.network import Block, Network, PaddedShortcut, build
from plainres.spec import NetworkSpec, known_names
from plainres.summary import layers

# facts.md, section 2: parameters of plain or option A, B, C, techxzen's, cfmz's; multiply-adds of A
COUNTS = {
    20: (269_722, 272_474, 283_962, 270_410, 272_292, 40_551_050),
    32: (464_154, 466_906, 489_594, 465_290, 466_724, 68_862_602),
    44: (658_586, 661_338, 695_226, 660_170, 661_156, 97_174_154),
    56: (853_018, 855_770, 900_858, 855_050, 855_588, 125_485_706),
    110: (1_727_962, 1_730_714, 1_826_202, 1_732_010, 1_730_532, 252_887_690),
    1202: (19_421_274, 19_424_026, 20_538_714, 19_466_090, 19_423_844, 2_829_238_922),
}


@pytest.mark.parametrize("depth", COUNTS)
def test_counts_are_exact(depth: int) -> None:
    names = [f"resnet{depth}{suffix}" for suffix in ("", "-b", "-c", "-techxzen", "-cfmz")]
    assert tuple(parameters(name) for name in names) == COUNTS[depth][:5]
    found = layers(names[0])
    assert sum(layer.parameters for layer in found) == COUNTS[depth][0]
    assert sum(layer.multiply_adds for layer in found) == COUNTS[depth][5]


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Network(NetworkSpec.named(name)).parameters())


@pytest.mark.parametrize("name", ["plain20", "plain56"])
def test_plain_networks_multiply_as_residual_ones(name: str) -> None:
    assert sum(layer.multiply_adds for layer in layers(name)) == COUNTS[int(name[5:])][5]


@pytest.mark.parametrize(
    ("name", "count"), [("plain20", 269_722), ("plain20-techxzen", 270_410), ("preact20", 269_722)]
)
def test_counts_of_networks_without_projections(name: str, count: int) -> None:
    assert parameters(name) == count


def test_preactivation_bottlenecks_have_the_published_sizes() -> None:
    assert (parameters("preact164"), parameters("preact1001")) == (1_703_258, 10_327_706)


def test_every_name_stands_for_itself() -> None:
    assert [NetworkSpec.named(name).name for name in known_names()] == known_names()
    assert NetworkSpec.named("resnet20").with_classes(100).name == "resnet20"
    assert fields.override(NetworkSpec.named("resnet20"), ["width=8"], "network").name == "resnet20-custom"


@pytest.mark.parametrize(
    "name", ["plain20", "resnet20-c", "resnet20-techxzen", "resnet20-cfmz", "preact20", "preact164"]
)
def test_networks_run_and_learn(name: str) -> None:
    network = build(name)
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    assert network.features(torch.randn(2, 3, 32, 32)).shape[1] == network.fc.in_features


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet21", "depth 21 is not 6n+2; nearest: 20 or 26"),
        ("plain2", "depth 2 is not 6n+2; nearest: 8 or 14"),
        ("resnet20-d", "did you mean 'resnet20"),
        ("resnet18x", "did you mean 'resnet1"),
        ("vgg", "unknown network 'vgg'"),
        ("plain20-b", "unknown network 'plain20-b'"),
        ("resnet60000002", "depth must be at most 10,000"),
        ("rasnet56", "did you mean 'resnet56'"),
    ],
)
def test_wrong_names(name: str, said: str) -> None:
    with pytest.raises(UserError, match="network") as caught:
        NetworkSpec.named(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("shortcut=D", "'D'; there are: A, B, C, identity-projection"),
        ("conv_bias=maybe", "expected true or false, got 'maybe'"),
        ("depth=twenty", "expected an integer, got 'twenty'"),
        ("convbias=true", "did you mean 'conv_bias'"),
        ("width", "is not an assignment"),
        ("depth=21", "depth 21 is not 6n+2"),
    ],
)
def test_wrong_fields(assignment: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        fields.override(NetworkSpec(), [assignment], "network")
    assert said in str(caught.value)


def test_a_spec_survives_json() -> None:
    for name in known_names():
        spec = NetworkSpec.named(name)
        assert fields.from_json(NetworkSpec, fields.to_json(spec), "network") == spec


def test_plain_is_residual_without_the_addition() -> None:
    plain, residual = build("plain20"), build("resnet20")
    state = plain.state_dict()
    assert state.keys() == residual.state_dict().keys()
    assert all(torch.equal(value, residual.state_dict()[key]) for key, value in state.items())
    x = torch.randn(2, 16, 8, 8)
    block, twin = plain.stage1[0].eval(), residual.stage1[0].eval()
    with torch.no_grad():
        before = twin.bn2(twin.conv2(F.relu(twin.bn1(twin.conv1(x)))))
        assert torch.equal(block(x), F.relu(before))
        assert torch.equal(twin(x), F.relu(before + x))


def shortcut_of(**fields: object) -> nn.Module:
    spec = NetworkSpec(**fields)  # type: ignore[arg-type]
    shortcut = Block(spec, 2, 4, 2).shortcut
    assert shortcut is not None
    return shortcut


def test_shortcut_a() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    zeros = torch.zeros(1, 1, 2, 2)
    every_second, mean = x[:, :, ::2, ::2], x.view(1, 2, 2, 2, 2, 2).mean((3, 5))
    centred = shortcut_of()(x)
    assert isinstance(shortcut_of(), PaddedShortcut)
    assert torch.equal(centred, torch.cat([zeros, every_second, zeros], 1))
    assert torch.equal(shortcut_of(zero_channels="after")(x), torch.cat([every_second, zeros, zeros], 1))
    assert torch.equal(shortcut_of(subsample="average")(x), torch.cat([zeros, mean, zeros], 1))


def test_projection_shortcuts() -> None:
    kinds = {"B": ["Conv2d", "BatchNorm2d"], "C": ["Conv2d", "BatchNorm2d"], "identity-projection": ["Conv2d"]}
    for option, modules in kinds.items():
        shortcut = shortcut_of(shortcut=option)
        assert [type(m).__name__ for m in shortcut.children()] == modules
    same = Block(NetworkSpec(shortcut="B"), 4, 4, 1).shortcut, Block(NetworkSpec(shortcut="C"), 4, 4, 1).shortcut
    assert isinstance(same[0], nn.Identity)
    assert isinstance(same[1], nn.Sequential)


def test_the_trainable_projection_starts_as_the_identity() -> None:
    network, x = build("resnet20-cfmz"), torch.randn(2, 16, 8, 8)
    passed = network.stage2[0].shortcut(x)
    assert torch.equal(passed, torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], 1))
    assert network.fc.bias is None
    assert isinstance(network.fc_bn, nn.BatchNorm1d)


def test_preactivation_shares_the_first_relu_where_the_shape_changes() -> None:
    network = build("preact20")
    shared = [block.activated_shortcut for s in (network.stage1, network.stage2, network.stage3) for block in s]
    assert shared == [True, False, False] * 3
    block, x = network.stage1[1].eval(), torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        y = block.conv2(F.relu(block.bn2(block.conv1(F.relu(block.bn1(x))))))
        assert torch.equal(block(x), y + x)


@pytest.mark.parametrize(("name", "fan"), [("resnet56", "in"), ("resnet56-techxzen", "out")])
def test_initialization_is_he(name: str, fan: str) -> None:
    network = build(name)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            size = module.weight.numel() // (module.weight.shape[0] if fan == "in" else module.weight.shape[1])
            assert float(module.weight.detach().std()) == pytest.approx((2 / size) ** 0.5, rel=0.12)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    expected = (2 / 64) ** 0.5 if fan == "in" else (2 / 74) ** 0.5
    assert float(network.fc.weight.detach().std()) == pytest.approx(expected, rel=0.12)


def test_initialization_is_golden_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    network = build("resnet20", seed=5)
    assert torch.equal(before, torch.get_rng_state())
    content = b"".join(p.detach().numpy().tobytes() for p in network.parameters())
    assert hashlib.sha256(content).hexdigest()[:16] == "308bf7cf7bfdcf58"
    assert not torch.equal(network.conv1.weight, build("resnet20", seed=6).conv1.weight)


def test_a_network_for_other_classes() -> None:
    assert build("resnet20", classes=100)(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    assert isinstance(build(NetworkSpec(depth=8, block="basic", width=4)), Network)
