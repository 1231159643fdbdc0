import torch

from rjem_cli.engine.data.load import CANVAS, PLACEMENTS, load_digit_splits, load_digits


def crop_to_content(image: torch.Tensor) -> bytes:
    rows, columns = image[0].nonzero().unbind(1)
    content = image[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return bytes(content.contiguous().view(-1).tolist())


def test_digits_are_those_of_scikit_learn_stretched_to_bytes():
    digits = load_digits()
    assert digits.pixels.shape == (1797, 1, 8, 8)
    assert digits.pixels.max() == 255 and digits.pixels.min() == 0
    assert set(digits.pixels.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}


def test_no_digit_is_in_two_splits_at_any_position():
    splits = load_digit_splits(0.1, shifted=True)
    assert splits.train.image_shape == (1, CANVAS, CANVAS)
    seen = [{crop_to_content(image) for image in part.pixels} for part in (splits.train, splits.val, splits.test)]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert len(splits.train) + len(splits.val) + len(splits.test) == 1797 * PLACEMENTS


def test_the_placements_of_a_digit_differ_and_are_the_same_each_time():
    train = load_digit_splits(0.1, shifted=True).train
    first = train.pixels[:PLACEMENTS].flatten(1)
    assert len(torch.unique(first, dim=0)) == PLACEMENTS
    assert (first.sum(1) == first[0].sum()).all()
    assert train.digest() == load_digit_splits(0.1, shifted=True).train.digest()
