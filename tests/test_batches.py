import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from plainres import recipes, sampling
from plainres.augmentation import augment
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.normalization import Normalization, given, measured
from plainres.recipe import Recipe

PADDINGS = ("zero-after", "zero-before", "edge")
KINDS = ("pixel-mean", "channel-mean", "channel-mean-std")


def one_by_one(
    image: NDArray[np.uint8], crop: tuple[int, int], flip: bool, mean: NDArray[np.float32], std: NDArray[np.float32],
    padding: str, pad: int,
) -> NDArray[np.float32]:  # fmt: skip
    """The augmentation of one image, written pixel by pixel."""
    out = np.zeros((3, 32, 32), dtype=np.float32)
    mean, std = np.broadcast_to(mean, out.shape), np.broadcast_to(std, out.shape)
    for y in range(32):
        for x in range(32):
            row, column = y + crop[0] - pad, (31 - x if flip else x) + crop[1] - pad
            inside = 0 <= row < 32 and 0 <= column < 32
            for c in range(3):
                if padding == "zero-after":
                    there = image[c, row, column] - mean[c, row, column] if inside else np.float32(0)
                    out[c, y, x] = there / std[c, 0, 0]
                    continue
                edge = image[c, min(max(row, 0), 31), min(max(column, 0), 31)] if padding == "edge" else np.uint8(0)
                out[c, y, x] = ((image[c, row, column] if inside else edge) - mean[c, y, x]) / std[c, 0, 0]
    return out


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_is_what_it_says(padding: str, kind: str) -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    normalization = measured(kind, images)
    crops, flips = torch.tensor([[0, 8], [4, 4], [8, 3], [1, 0]]), torch.tensor([0, 1, 1, 0])
    batch = augment(images, crops, flips, normalization, padding=padding, pad=4)
    mean, std = normalization.mean.numpy(), normalization.std.numpy()
    for i, (crop, flip) in enumerate(zip(crops.tolist(), flips.tolist(), strict=True)):
        expected = one_by_one(images[i].numpy(), tuple(crop), bool(flip), mean, std, padding, 4)
        assert np.array_equal(batch[i].numpy(), expected)


def test_every_crop_and_mirror_is_equally_likely() -> None:
    draws = sampling.draw(3, 1000, 0, 324_000, pad=4, flip=True)
    places = draws.crop[:, 0] * 9 + draws.crop[:, 1]
    counts = np.bincount(places * 2 + draws.flip, minlength=162)
    assert len(counts) == 162  # 81 crops, the last row and column among them, and their mirrors
    assert np.square(counts - 2000).sum() / 2000 < 250  # chi-square of 161 degrees: above in 1 of 100,000


def test_every_pass_shows_every_image_once() -> None:
    whole = sampling.order(0, 300, 0, 900)
    for start in (0, 300, 600):
        assert sorted(whole[start : start + 300]) == list(range(300))
    assert np.array_equal(sampling.order(0, 300, 290, 400), whole[290:690])
    assert np.array_equal(sampling.order(0, 300, 600, 1), whole[600:601])


def test_batches_depend_on_seed_and_step_alone(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.resolve("quick", ["batch_size=7"])
    endless = iter(small.batches(5, recipe))
    in_turn = [next(endless) for _ in range(120)]
    monkeypatch.setattr("plainres.data.dataset._CHUNK", 64)  # other chunks, the same images
    again, later = small.batches(5, recipe), iter(small.batches(5, recipe, start=100))
    for step in (119, 0, 43, 42):
        assert torch.equal(in_turn[step][0], again[step][0])
        assert torch.equal(in_turn[step][1], again[step][1])
    assert torch.equal(next(later)[0], in_turn[100][0])
    assert not torch.equal(small.batches(6, recipe)[0][0], in_turn[0][0])


def test_batches_are_golden(small: Dataset) -> None:
    labels = [small.batches(0, "paper")[step][1][:8].tolist() for step in (0, 1000)]
    assert labels == [[3, 5, 5, 8, 2, 6, 1, 2], [2, 7, 3, 2, 7, 2, 1, 1]]


def test_labels_stay_with_their_images(small: Dataset) -> None:
    part = small.part("train")
    images, labels = small.batches(0, recipes.resolve("paper", ["pad=0", "flip=no"]))[0]
    inputs = small.normalization("paper")(part.images)
    for image, label in zip(images[:16], labels[:16], strict=True):
        found = (inputs == image).flatten(1).all(1).nonzero().flatten()
        assert label in part.labels[found]


def test_normalizations() -> None:
    images = torch.randint(0, 256, (700, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    wide = images.double()
    pixel, channel, both = (measured(kind, images) for kind in KINDS)
    assert torch.equal(pixel.mean, wide.mean(0).float())
    assert torch.allclose(channel.mean.flatten().double(), wide.mean((0, 2, 3)), rtol=1e-7)
    assert torch.allclose(both.std.flatten().double(), wide.std((0, 2, 3), correction=0), rtol=1e-6)
    assert torch.equal(channel.std, torch.ones(3, 1, 1))
    normalized = both(images)
    assert normalized.dtype == torch.float32
    assert torch.allclose(normalized.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)


def test_statistics_are_of_the_part_in_use(small: Dataset) -> None:
    kept = recipes.resolve("quick", ["validation_images=100"])
    train, val = small.part("train", 100), small.part("val", 100)
    assert (len(train.labels), len(val.labels)) == (200, 100)
    assert torch.equal(torch.cat([train.images, val.images]), small.part("train").images)
    assert torch.equal(small.normalization(kept).mean, measured("channel-mean-std", train.images).mean)
    assert not torch.equal(small.normalization(kept).mean, small.normalization("quick").mean)


def test_given_statistics_are_used(small: Dataset) -> None:
    assert small.normalization("techxzen").mean.flatten().tolist() == [125.0, 123.0, 114.0]
    both = recipes.resolve("quick", ["mean=1,2,3", "std=4,5,6"])
    expected = given("channel-mean-std", (1, 2, 3), (4, 5, 6))
    assert isinstance(small.normalization(both), Normalization)
    assert torch.equal(small.normalization(both)(small.part("test").images), expected(small.part("test").images))


def test_parts_that_do_not_exist(small: Dataset) -> None:
    with pytest.raises(UserError, match="leave none to train on"):
        small.part("train", 300)
    with pytest.raises(UserError, match="keeps no validation images"):
        small.part("val")
    with pytest.raises(UserError, match="unknown split 'tset'"):
        small.part("tset")


def test_a_batch_larger_than_the_set(small: Dataset) -> None:
    recipe = Recipe(name="large", steps=1, batch_size=700)
    images, labels = small.batches(0, recipe)[0]
    assert images.shape == (700, 3, 32, 32)
    assert len(labels) == 700
