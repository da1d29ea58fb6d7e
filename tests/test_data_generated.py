"""The built-in data set: the same bytes everywhere, balanced, and a store like any other."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from plainres.data import generated
from plainres.data.binary import write_binary
from plainres.data.generated import Request, draw, generated_store, parse
from plainres.data.records import Images
from plainres.data.store import open_store
from plainres.errors import UserError

# A change of either changes every result on generated data: raise VERSION with it.
GOLDEN = "30d053351177bdc94fc4479b1e5cdd91193258d28c277e3d92e31ce2f07d8a21"
GOLDEN_STORE = "e0dd62cc47a3e23e58e93bf53fd978ec78dc94718dcf13fa873fb613cfececb7"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def some() -> Images:
    return draw(520, 30, 0)


def digest(images: Images) -> str:
    sha = hashlib.sha256()
    for split in ("train", "test"):
        sha.update(images.splits[split].images.tobytes() + images.splits[split].labels.tobytes())
    return sha.hexdigest()


def test_the_bytes_are_the_same_everywhere(some: Images) -> None:
    assert digest(some) == GOLDEN


def test_shapes_types_and_balance(some: Images) -> None:
    train = some.splits["train"]
    assert train.images.shape == (520, 3, 32, 32)
    assert [str(part.dtype) for part in (train.images, train.labels, train.index)] == [
        "uint8",
        "uint8",
        "int64",
    ]
    assert np.bincount(train.labels).tolist() == [52] * 10
    assert len(some.classes) == len(set(some.classes)) == 10


def test_images_use_the_whole_range_and_differ(some: Images) -> None:
    images = some.splits["train"].images
    assert len(np.unique(images.reshape(520, -1), axis=0)) == 520
    assert (images.min(), images.max()) == (0, 255)
    assert 100 < images.mean() < 156


def test_a_smaller_set_is_the_beginning_of_a_larger_one(some: Images) -> None:
    fewer = draw(253, 11, 0)
    for split, count in (("train", 253), ("test", 11)):
        np.testing.assert_array_equal(fewer.splits[split].images, some.splits[split].images[:count])
        np.testing.assert_array_equal(fewer.splits[split].labels, some.splits[split].labels[:count])


def test_test_images_are_other_images_of_the_same_classes(some: Images) -> None:
    both = np.concatenate([some.splits[split].images.reshape(-1, 3072) for split in ("train", "test")])
    assert len(np.unique(both, axis=0)) == 550


def test_another_seed_draws_other_emblems(some: Images) -> None:
    other = draw(10, 10, 1)
    assert not (generated._emblems(0) == generated._emblems(1)).all(axis=(0, 2, 3)).any()
    assert (other.splits["train"].images != some.splits["train"].images[:10]).mean() > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 2**64 - 1])
def test_every_class_has_an_emblem_of_its_own_inside_its_frame(seed: int) -> None:
    cover = generated._emblems(seed)[0]
    assert (cover.min(), cover.max()) == (0, 256)
    assert (cover > 128).mean(axis=(1, 2)).min() > 0.08
    rim = [cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1]]
    assert max(side.max() for side in rim) == 0  # pixels beyond an emblem are sampled from its rim
    shapes = (cover > 128).reshape(10, -1)
    for one in range(10):
        for mirrored in (cover, cover[:, :, ::-1]):
            same = (shapes[one] == (mirrored > 128).reshape(10, -1)).mean(axis=1)
            assert np.delete(same, one).max() < 0.97


def test_both_directions_and_all_of_the_image_are_used(some: Images) -> None:
    """Any emblem lands everywhere: class means are smooth, and mirrored ones are near them."""
    for label in range(10):
        mean = some.splits["train"].images[some.splits["train"].labels == label].mean(axis=0)
        assert np.abs(mean - mean[:, :, ::-1]).mean() < 25


@pytest.mark.parametrize(
    ("description", "request_"),
    [
        ("generated", Request(5000, 1000, 0)),
        ("generated:", Request(5000, 1000, 0)),
        ("generated:2000", Request(2000, 1000, 0)),
        ("generated:2000,seed=7", Request(2000, 1000, 7)),
        ("generated:test=100, train=200,seed=18446744073709551615", Request(200, 100, 2**64 - 1)),
    ],
)
def test_descriptions(description: str, request_: Request) -> None:
    assert parse(description) == request_


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("generate", "unknown data 'generate'; did you mean 'generated'?"),
        ("generated:tran=5", "unknown setting of generated data 'tran'; did you mean 'train'?"),
        ("generated:seed=1,500", "unknown setting of generated data '500'"),
        ("generated:train=20,train=30", "gives train twice"),
        ("generated:20,train=30", "gives train twice"),
        ("generated:train=", "train must be a whole number from 10 to 1,000,000, not ''"),
        ("generated:train=5e3", "not '5e3'"),
        ("generated:train=9", "train must be a whole number from 10"),
        ("generated:9999999", "train must be a whole number from 10 to 1,000,000, not '9999999'"),
        ("generated:seed=-1", "seed must be a whole number from 0"),
        ("generated:seed=18446744073709551616", "seed must be"),
        ("generated:seed=" + "9" * 5000, "seed must be"),
        ("generated:test=²", "test must be"),
        ("generated:,", "train must be"),
        ("generated:20,", "unknown setting"),
    ],
)
def test_bad_descriptions_get_one_line(description: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(description)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_store_is_written_once_and_opened_after(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generated_store("generated:train=520,test=30")
    assert (first.name, first.generated, first.new) == ("generated", True, True)
    assert first.counts == {"train": 520, "test": 30}
    assert first.classes == generated.CLASSES
    assert first.hash == GOLDEN_STORE
    assert [path.name for path in home.iterdir()] == [first.path.name]  # nothing temporary is left
    monkeypatch.setattr(generated, "draw", None)
    second = generated_store("generated:520,test=30,seed=0")
    assert second == first
    assert not second.new


def test_the_store_holds_the_drawn_images(home: Path, some: Images) -> None:
    store = generated_store("generated:520,test=30")
    for name, split in some.splits.items():
        kept = store.split(name)
        drawn = {row.tobytes(): label for row, label in zip(split.images, split.labels, strict=True)}
        assert {row.tobytes(): label for row, label in zip(kept.images, kept.labels, strict=True)} == drawn


def test_a_damaged_store_is_drawn_again(home: Path) -> None:
    store = generated_store("generated:20,test=10")
    (store.path / "train_images.npy").write_bytes(b"")
    assert generated_store("generated:20,test=10").hash == store.hash
    assert open_store(store.path).hash == store.hash


def test_it_goes_through_the_binary_layout(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def write(folder: Path, images: Images) -> None:
        write_binary(folder, images)
        seen.append(sorted(path.name for path in folder.iterdir()))

    monkeypatch.setattr(generated, "write_binary", write)
    generated_store("generated:20,test=10")
    assert seen == [["batches.meta.txt", *(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]]


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(UserError, match="file"):
        generated_store("generated:20,test=10")
