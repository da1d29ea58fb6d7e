import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import plainres
from conftest import TINY
from plainres import fields, weights
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.network import build
from plainres.normalization import Normalization

FACTS: dict[str, Any] = {"network": fields.to_json(TINY), "classes": list("abcdefghij")}


@pytest.fixture
def inputs(small: Dataset) -> Normalization:
    return small.normalization("paper")


def test_what_is_saved_is_loaded(inputs: Normalization, small: Dataset, tmp_path: Path) -> None:
    network, file = build(TINY, seed=3), tmp_path / "w.safetensors"
    weights.save(file, network, inputs, FACTS)
    classifier = plainres.load(file)
    assert not classifier.training
    assert not any(module.training for module in classifier.modules())
    images = small.part("test").images
    assert torch.equal(classifier(images), network.eval()(inputs(images)))
    assert classifier.normalization.kind == "pixel-mean"
    assert set(dict(classifier.named_buffers())) >= {"mean", "std"}


def test_equal_weights_are_equal_files(inputs: Normalization, tmp_path: Path) -> None:
    digests = [weights.save(tmp_path / n, build(TINY), inputs, dict(FACTS)) for n in ("a.safetensors", "b.safetensors")]
    assert digests[0] == digests[1]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_wrappers_leave_no_trace(inputs: Normalization, tmp_path: Path) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = build(TINY)

    weights.save(tmp_path / "w.safetensors", Wrapper(), inputs, FACTS)
    assert plainres.load(tmp_path / "w.safetensors").network.state_dict().keys() == build(TINY).state_dict().keys()
    state = {"module._orig_mod.a": torch.zeros(1), "module._orig_mod.module.b": torch.ones(1)}
    assert list(weights.bare(state)) == ["a", "module.b"]
    assert list(weights.bare({"module.a": torch.zeros(1), "b": torch.zeros(1)})) == ["module.a", "b"]


def test_half_precision_becomes_the_networks(inputs: Normalization, small: Dataset, tmp_path: Path) -> None:
    file, network = tmp_path / "w.safetensors", build(TINY)
    weights.save(file, network.half(), inputs, FACTS)
    classifier = plainres.load(file)
    assert {t.dtype for t in classifier.network.state_dict().values()} == {torch.float32, torch.int64}
    assert classifier(small.part("test").images).isfinite().all()


def test_tied_weights_are_saved(inputs: Normalization, tmp_path: Path) -> None:
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "module": torch.nn.Linear(3, 3)})
    network["a"].weight = network["module"].weight
    weights.save(tmp_path / "w.safetensors", network, inputs, {"network": {"module": "x"}})
    held = weights.read(tmp_path / "w.safetensors")
    assert held.state.keys() == network.state_dict().keys()
    weights.fill(network, held.state, "w")


def test_predict_takes_tensors_and_pictures(inputs: Normalization, small: Dataset, tmp_path: Path) -> None:
    weights.save(tmp_path / "w.safetensors", build(TINY), inputs, FACTS)
    classifier, images = plainres.load(tmp_path / "w.safetensors"), small.part("test").images[:5]
    found = classifier.predict(images)
    pictures = [Image.fromarray(np.ascontiguousarray(i.permute(1, 2, 0).numpy())) for i in images]
    assert classifier.predict(pictures) == found
    assert classifier.predict(pictures[0])[0][0] == found[0][0]
    assert all(name in "abcdefghij" and 0.1 <= p <= 1 for name, p in found)
    assert classifier.predict(pictures[0].resize((64, 48)).convert("L"))
    with pytest.raises(ValueError, match=r"expected images \(N, 3, 32, 32\)"):
        classifier(images.permute(0, 2, 3, 1))


def altered(file: Path, change: Any, about: Any = None) -> None:
    """The weights file with its tensors and its facts changed."""
    with safetensors.safe_open(file, framework="pt") as held:
        facts = json.loads(held.metadata()["plainres"])
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    if about:
        about(facts)
    safetensors.torch.save_file(tensors, file, {"plainres": json.dumps(facts)})


@pytest.mark.parametrize(
    ("change", "about", "said"),
    [
        (lambda t: t.pop("conv1.weight"), None, "conv1.weight is missing"),
        (lambda t: t.update({"conv9.weight": torch.zeros(1)}), None, "conv9.weight is not of this network"),
        (lambda t: t.update({"fc.bias": torch.zeros(9)}), None, r"fc.bias is \(9,\) float32, expected \(10,\) float32"),
        (lambda t: t.update({"fc.bias": torch.zeros(10, dtype=torch.int64)}), None, "int64, expected .* float32"),
        (lambda t: None, lambda f: f["network"].update(depth=14), "tensors do not fit"),
        (lambda t: None, lambda f: f["network"].update(depth=13), "depth 13 is not 6n"),
        (lambda t: None, lambda f: f["network"].update(depth=6_000_002), "depth must be at most"),
        (lambda t: None, lambda f: f["network"].update(width=4096), "its tensors do not fit"),
        (lambda t: None, lambda f: f["network"].update(colour=1), "unknown .* field 'colour'"),
        (lambda t: None, lambda f: f.update(network="resnet20"), "a network from outside plainres"),
        (lambda t: None, lambda f: f.update(normalization="none"), "damaged metadata"),
        (lambda t: t.pop("normalization.mean"), None, "without this project's metadata"),
        (lambda t: t.update({"normalization.mean": torch.zeros(7)}), None, "damaged"),
        (lambda t: None, lambda f: f.update(classes=["a"]), "no list of 10 class names"),
    ],
)
def test_a_file_that_lies_is_refused(change: Any, about: Any, said: str, inputs: Normalization, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    weights.save(file, build(TINY), inputs, FACTS)
    altered(file, change, about)
    with pytest.raises(UserError, match=said) as caught:
        plainres.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match="not a weights file"):
        plainres.load(file)
