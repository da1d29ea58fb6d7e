import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plainres
from conftest import TINY
from plainres.data.dataset import Dataset
from plainres.errors import Stopped, UserError
from plainres.evaluation import evaluate_part
from plainres.network import build
from plainres.responses import responses
from plainres.statistics import interval


class Oracle(nn.Module):
    """A classifier that is right but for every tenth image, by looking its inputs up."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.sums = inputs.sum((1, 2, 3))
        self.answers = labels.clone()
        self.answers[::10] = (self.answers[::10] + 1) % 10

    def forward(self, x: Tensor) -> Tensor:
        found = (x.sum((1, 2, 3))[:, None] - self.sums[None]).abs().argmin(1)
        return F.one_hot(self.answers[found], 10) * 20.0


def test_misses_are_counted_once_each(small: Dataset) -> None:
    part = small.part("test")
    oracle = Oracle(small.normalization("quick")(part.images), part.labels)
    for batch in (100, 33, 7):  # an odd last batch counts as what it is
        found = evaluate_part(oracle, part, small.normalization("quick"), small.classes, batch=batch)
        assert (found.misses, found.images, found.error) == (10, 100, 0.1)
    found = plainres.evaluate(oracle, small, recipe="quick")
    assert found.loss == pytest.approx(2.0, rel=1e-3)
    confusion = found.confusion
    assert int(confusion.sum()) == 100
    assert int(confusion.diag().sum()) == 90
    assert all(int(confusion[i].sum()) == int((part.labels == i).sum()) for i in range(10))
    wrong = {
        name: float((part.labels[::10] == i).sum() / (part.labels == i).sum()) for i, name in enumerate(small.classes)
    }
    assert found.class_errors == pytest.approx(wrong)


def test_the_network_is_left_as_it_was(small: Dataset) -> None:
    network = build(TINY)
    network.stage1.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    plainres.evaluate(network, small)
    responses(network, small.part("test").images, small.normalization("paper"))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_evaluation_is_in_evaluation_mode(small: Dataset) -> None:
    network = build(TINY).train()
    by_ours = plainres.evaluate(network, small, recipe="quick").logits
    network.eval()
    with torch.no_grad():
        by_hand = network(small.normalization("quick")(small.part("test").images))
    assert torch.allclose(by_ours, by_hand, atol=1e-5)


def test_an_evaluation_can_be_stopped(small: Dataset) -> None:
    network, part = build(TINY), small.part("test")
    with pytest.raises(Stopped):
        evaluate_part(network, part, small.normalization("paper"), small.classes, should_stop=lambda: True)
    assert network.training


def test_a_network_of_other_classes(small: Dataset) -> None:
    with pytest.raises(UserError, match="the network has 100 outputs, the data 10 classes"):
        plainres.evaluate(build(TINY, classes=100), small)


def test_responses_are_the_deviations_before_the_nonlinearity(small: Dataset) -> None:
    network, normalization = build("plain8").eval(), small.normalization("quick")
    with torch.no_grad():
        network.bn1.weight.copy_(torch.linspace(0.5, 2, 16))
        network.bn1.bias.copy_(torch.linspace(-1, 1, 16))
        images = small.part("test").images
        first = network.bn1(network.conv1(normalization(images)))
        second = network.stage1[0].bn1(network.stage1[0].conv1(F.relu(first)))
    found = responses(network, images, normalization, batch=30)
    assert [x["layer"] for x in found][:3] == ["bn1", "stage1.0.bn1", "stage1.0.bn2"]
    assert len(found) == 7
    assert found[0]["std"] == pytest.approx(float(first.std(correction=0)), rel=1e-5)
    assert found[1]["std"] == pytest.approx(float(second.std(correction=0)), rel=1e-5)
    assert len(responses(build("resnet8-b"), images, normalization)) == 7  # projections left out


@pytest.mark.parametrize(
    ("misses", "images", "low", "high"),
    [(0, 10, 0.0, 0.2775), (875, 10_000, 0.0821, 0.0932), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_intervals(misses: int, images: int, low: float, high: float) -> None:
    assert interval(misses, images) == pytest.approx((low, high), abs=1e-4)
