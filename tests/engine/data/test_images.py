import numpy as np
import pytest
import torch

from rjem_cli.engine.data.images import ImageSet, build_splits, split_off, spread_indices, to_model, to_pixels
from rjem_cli.errors import DataError


def test_pixels_survive_the_way_to_the_model_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_model(pixels)), pixels)
    assert to_model(pixels).min() == -1 and to_model(pixels).max() == 1
    assert to_pixels(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def build_numbered_images(count: int, classes: int) -> ImageSet:
    pixels = torch.arange(count, dtype=torch.int64).view(-1, 1, 1, 1).expand(count, 1, 2, 2) % 256
    return ImageSet(pixels.to(torch.uint8), torch.arange(count) % classes, tuple(f"c{i}" for i in range(classes)))


def test_splits_share_no_image_lose_none_and_are_the_same_each_time():
    images = build_numbered_images(200, 4)
    splits = build_splits("numbers", images, None, val_fraction=0.25)
    parts = [set(part.pixels[:, 0, 0, 0].tolist()) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == 200 and len(set.union(*parts)) == 200
    assert [len(part) for part in parts] == [120, 40, 40]
    assert torch.bincount(splits.val.labels).tolist() == [10] * 4
    again = build_splits("numbers", images, None, val_fraction=0.25)
    assert again.train.digest() == splits.train.digest() != splits.val.digest()


def test_a_given_test_set_is_kept():
    test = build_numbered_images(8, 4)
    splits = build_splits("numbers", build_numbered_images(40, 4), test, val_fraction=0)
    assert splits.test is test and len(splits.train) == 40 and len(splits.val) == 0


@pytest.mark.parametrize(
    ("pixels", "labels", "error", "message"),
    [
        (torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), TypeError, r"torch.float32; .* \(255 \* x\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), torch.tensor([0, 1]), TypeError, "ndarray and Tensor; give tensors"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), torch.tensor([0, 1]), TypeError, "give torch.uint8"),
        (
            torch.zeros(2, 4, 4, dtype=torch.uint8),
            torch.tensor([0, 1]),
            ValueError,
            r"\(2, 4, 4\); give \(N, C, H, W\)",
        ),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 1]), ValueError, "with C = 1 or 3"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.tensor([0.0, 1.0]),
            TypeError,
            "labels have dtype torch.float32; give integers",
        ),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0]), ValueError, r"\(1,\) for 2 images"),
        (
            torch.zeros(2, 1, 0, 4, dtype=torch.uint8),
            torch.tensor([0, 1]),
            ValueError,
            r"\(2, 1, 0, 4\); .* H, W above 0",
        ),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.tensor([0, 2]),
            ValueError,
            "from 0 to 2 with 2 class names; give labels from 0 to 1",
        ),
    ],
)
def test_images_and_labels_of_another_kind_are_refused(pixels, labels, error, message):
    with pytest.raises(error, match=message):
        ImageSet(pixels, labels, ("a", "b"))


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int64, torch.uint16])
def test_class_numbers_of_any_integer_type_are_kept_as_int64(kind):
    images = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1], dtype=kind), ("a", "b"))
    assert images.labels.dtype == torch.int64 and images.labels.tolist() == [0, 1]


def test_splitting_nothing_off_leaves_all():
    remaining, split = split_off(build_numbered_images(10, 2), 0)
    assert len(remaining) == 10 and len(split) == 0


def test_too_few_images_are_an_error():
    with pytest.raises(DataError, match="too few images"):
        build_splits("numbers", build_numbered_images(4, 2), None, val_fraction=0)


@pytest.mark.parametrize("class_names", [["a", "b"], "ab", (0, 1), None])
def test_class_names_must_be_a_tuple_of_strings(class_names):
    with pytest.raises(TypeError, match="class_names are .*; give a tuple of strings"):
        ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), class_names)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_spread_indices_are_distinct_and_reach_both_ends(count):
    for limit in range(count + 2):
        indices = spread_indices(count, limit).tolist()
        assert len(indices) == len(set(indices)) == min(limit or count, count) and indices == sorted(indices)
        assert indices[0] == 0 and (limit == 1 or indices[-1] == count - 1)
