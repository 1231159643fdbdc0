import numpy as np
import pytest
import torch

from rjem_cli.engine.data.images import ImageSet, make_splits, split_off, to_model, to_pixels
from rjem_cli.errors import DataError


def test_pixels_survive_the_way_to_the_model_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_model(pixels)), pixels)
    assert to_model(pixels).min() == -1 and to_model(pixels).max() == 1
    assert to_pixels(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def numbered(count: int, classes: int) -> ImageSet:
    pixels = torch.arange(count, dtype=torch.int64).view(-1, 1, 1, 1).expand(count, 1, 2, 2) % 256
    return ImageSet(pixels.to(torch.uint8), torch.arange(count) % classes, tuple(f"c{i}" for i in range(classes)))


def test_splits_share_no_image_lose_none_and_are_the_same_each_time():
    images = numbered(200, 4)
    splits = make_splits("numbers", images, None, val_fraction=0.25)
    parts = [set(part.pixels[:, 0, 0, 0].tolist()) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == 200 and len(set.union(*parts)) == 200
    assert [len(part) for part in parts] == [120, 40, 40]
    assert torch.bincount(splits.val.labels).tolist() == [10] * 4
    again = make_splits("numbers", images, None, val_fraction=0.25)
    assert again.train.digest() == splits.train.digest() != splits.val.digest()


def test_a_given_test_set_is_kept():
    test = numbered(8, 4)
    splits = make_splits("numbers", numbered(40, 4), test, val_fraction=0)
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
    rest, share = split_off(numbered(10, 2), 0)
    assert len(rest) == 10 and len(share) == 0


def test_too_few_images_are_an_error():
    with pytest.raises(DataError, match="too few images"):
        make_splits("numbers", numbered(4, 2), None, val_fraction=0)
