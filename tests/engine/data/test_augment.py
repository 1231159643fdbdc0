import torch
import torch.nn.functional as F

from rjem_cli.engine.data.augment import augment, random_crop, random_flip

PIXELS = torch.randint(0, 256, (40, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_a_crop_is_a_window_of_the_reflected_image_and_windows_differ():
    pad = 2
    cropped = random_crop(PIXELS, pad, generator())
    padded = F.pad(PIXELS.float(), (pad,) * 4, mode="reflect").byte()
    corners = set()
    for image, source in zip(cropped, padded):
        matches = [(r, c) for r in range(5) for c in range(5) if torch.equal(image, source[:, r : r + 9, c : c + 7])]
        assert matches
        corners.add(matches[0])
    assert len(corners) > 10


def test_about_half_of_the_images_are_mirrored_and_the_rest_untouched():
    flipped = random_flip(PIXELS, generator())
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, PIXELS)]
    untouched = [torch.equal(a, b) for a, b in zip(flipped, PIXELS)]
    assert all(m != u for m, u in zip(mirrored, untouched))
    assert 10 < sum(mirrored) < 30


def test_no_augmentation_changes_nothing_and_bytes_stay_bytes():
    assert torch.equal(augment(PIXELS, 0, False, generator()), PIXELS)
    assert augment(PIXELS, 3, True, generator()).dtype == torch.uint8
