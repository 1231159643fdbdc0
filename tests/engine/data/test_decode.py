"""Pixels of image files, compared with decoders that share no code with Pillow."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as decode_with_torchvision

from rjem_cli.engine.data import decode as decode_module
from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.data.decode import decode_image, has_signature
from rjem_cli.errors import AbsentError, DataError
from tests.image_files import png, write

PICTURE = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def decode(content: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode_image(content, "x").array


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_upright_as_the_camera_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(PICTURE), kind, exif=exif)
    options = {"mode": ImageReadMode.RGB, "apply_exif_orientation": True}
    expected = decode_with_torchvision(torch.frombuffer(bytearray(content), dtype=torch.uint8), **options)
    found = torch.from_numpy(decode(content).copy()).permute(2, 0, 1)
    assert found.shape == expected.shape and (found.int() - expected.int()).abs().max() <= 4  # of JPEG


def test_damaged_exif_data_changes_nothing():
    content = encode(Image.fromarray(PICTURE), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert (decode(content) == PICTURE).all()


@pytest.mark.parametrize("alpha", [0, 51, 128, 255])
def test_transparent_pixels_show_white(alpha):
    layers = np.dstack([PICTURE, np.full(PICTURE.shape[:2], alpha, np.uint8)])
    layers[0, 0, 3] = 255
    expected = 255 + (PICTURE.astype(float) - 255) * layers[..., 3:] / 255
    assert abs(decode(encode(Image.fromarray(layers))) - expected).max() <= 1


def test_an_alpha_of_zero_everywhere_is_not_used():
    layers = np.dstack([PICTURE, np.zeros(PICTURE.shape[:2], np.uint8)])
    for kind in ("PNG", "TGA"):
        assert (decode(encode(Image.fromarray(layers), kind)) == PICTURE).all()


def test_transparency_of_grey_and_palette_images():
    alpha = np.zeros(PICTURE.shape[:2], np.uint8)
    alpha[0, 0] = 255
    grey = decode(encode(Image.fromarray(np.dstack([PICTURE[..., 0], alpha]))))
    assert grey.shape == (7, 5) and grey[0, 0] == PICTURE[0, 0, 0] and (grey.flatten()[1:] == 255).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 10, 10, 200, 10])
    palette.putpixel((1, 0), 1)
    assert decode(encode(palette, transparency=0)).tolist() == [[[255, 255, 255], [10, 200, 10]]]
    assert decode(encode(palette, transparency=bytes([0, 255]))).tolist() == [[[255, 255, 255], [10, 200, 10]]]
    assert decode(encode(palette)).tolist() == [[[200, 10, 10], [10, 200, 10]]]


LOSSLESS = [
    ("PNG", "png"),
    ("TIFF", "TIF"),
    ("BMP", "bmp"),
    ("TGA", "tga"),
    ("PPM", "ppm"),
    ("PCX", "pcx"),
    ("DIB", "dib"),
]


@pytest.mark.parametrize(("kind", "suffix"), [*LOSSLESS, ("WEBP", "webp"), ("JPEG2000", "jp2"), ("GIF", "gif")])
def test_every_format_is_read(tmp_path, kind, suffix):
    options = {"lossless": True} if kind == "WEBP" else {}
    files = {f"cat/x.{suffix}": encode(Image.fromarray(PICTURE), kind, **options), "dog/y.png": png(1, (5, 7))}
    pixels = read_collection(str(write(files, tmp_path / "set"))).pixels[0].permute(1, 2, 0).numpy()
    assert (pixels == PICTURE).all() or kind == "GIF"


def test_jpegs_by_any_name_and_images_without_a_suffix_are_read(tmp_path):
    jpeg = encode(Image.fromarray(PICTURE), "JPEG")
    files = {f"cat/{name}": jpeg for name in ("a.jfif", "b.JPE", "c.jpeg", "IMG_0001")}
    files |= {"dog/LICENSE": b"You may", "dog/train.idx": b"x", "dog/d.avif": encode(Image.fromarray(PICTURE), "AVIF")}
    files |= {"dog/Thumbs.db": b"x", "@eaDir/cat/a.jfif/SYNOPHOTO_THUMB.jpg": jpeg, ".DS_Store": b"x", "._a.jpg": b"x"}
    collection = read_collection(str(write(files, tmp_path / "set.zip")))
    assert len(collection) == 5 and collection.class_names == ("cat", "dog")
    assert collection.read_summary.endswith(
        "passed over 6 files (4 hidden or of the system, 1 .idx, 1 without a suffix)"
    )


def test_heic_is_named(tmp_path):
    content = b"\0\0\0\x18ftypheic" + bytes(40)
    with pytest.raises(DataError, match=r"a.jpg is a HEIC image; convert it"):
        read_collection(str(write({"a.jpg": content}, tmp_path / "x")))
    with pytest.raises(AbsentError, match=r"holds no images; .* \(found: 2 .heic, 1 .txt\)"):
        read_collection(str(write({"a.heic": content, "b.HEIC": content, "c.txt": b"x"}, tmp_path / "y")))


def test_animations_are_counted(tmp_path):
    first, second = Image.new("L", (5, 7), 0), Image.new("L", (5, 7), 255)
    animation = encode(first, "GIF", save_all=True, append_images=[second])
    collection = read_collection(str(write({"a.gif": animation, "b.png": png(9, (5, 7))}, tmp_path / "set")))
    assert (collection.pixels[0] == 0).all()
    assert collection.read_summary.endswith("2 images, no classes; read the first image of 1 file with several")


def test_a_ppm_of_sixteen_bits_is_refused():
    with pytest.raises(DataError, match="more than 8 bits"):
        decode_image(b"P6 2 1 65535\n" + bytes(12), "x")


def planar_tiff(bits: int) -> bytes:
    """One pixel of three channels, each in a strip of its own."""
    size, tags = bits // 8, ((256, 1), (257, 1), (259, 1), (262, 2), (277, 3), (278, 1), (284, 2))  # short integers
    entries = [struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in tags]
    start = 8 + 2 + 12 * (len(tags) + 3) + 4
    arrays = ((258, 3, "<3H", (bits,) * 3), (273, 4, "<3I", (start + 30, start + 30 + size, start + 30 + 2 * size)))
    extra = b""
    for tag, kind, layout, values in (*arrays, (279, 4, "<3I", (size,) * 3)):
        entries.append(struct.pack("<HHII", tag, kind, 3, start + len(extra)))
        extra += struct.pack(layout, *values)
    header = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return header + b"".join(sorted(entries, key=lambda entry: entry[:2][::-1])) + bytes(4) + extra + b"\xa3" * 3 * size


def test_a_planar_tiff_of_sixteen_bits_is_refused():
    assert decode_image(planar_tiff(8), "x").array.tolist() == [[[163, 163, 163]]]
    with pytest.raises(DataError, match="more than 8 bits"):
        decode_image(planar_tiff(16), "x")


def test_a_large_photograph_is_read_if_it_is_resized(monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(DataError, match="10x10, too large for a training image; add --image-size 32 to resize it"):
        decode_image(png(1, (10, 10)), "x")
    assert decode_image(png(1, (10, 10)), "x", 4).array.shape[:2] == (4, 4)
    monkeypatch.setattr(decode_module, "MAX_RESIZED_PIXELS", 99)
    with pytest.raises(DataError, match="too large for a training image; remove it"):
        decode_image(png(1, (10, 10)), "x", 4)


def test_a_pointer_of_git_lfs_is_named():
    with pytest.raises(DataError, match="x is a pointer of Git LFS; run git lfs pull first"):
        decode_image(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "x")


@pytest.mark.parametrize("content", [b"", b"\n", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0", b"\x89HDF\r\n\x1a\n", b"P7"])
def test_other_files_have_no_signature(content):
    assert not has_signature(content)
    with pytest.raises(DataError, match="x is corrupt or not an image"):
        decode_image(content, "x")
