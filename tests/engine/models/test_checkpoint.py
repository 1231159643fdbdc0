import hashlib
import json
import os
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from rjem_cli import files
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.images import ImageSet, Splits
from rjem_cli.engine.models.checkpoint import (
    FORMAT,
    CheckpointInfo,
    checkpoint_tensors,
    load_checkpoint,
    read_info,
    write_checkpoint,
)
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.models.tensor_file import METADATA_KEY, encode, read_tensors, write_tensors
from rjem_cli.engine.networks.build import build_model
from rjem_cli.errors import AbsentError, DataError, RjemError

CONFIG = TrainConfig(depth=10, width=1, adv_eps="8/255")
INFO = CheckpointInfo(CONFIG, ("a", "b", "c"), (1, 8, 8), "tiny", "0" * 64, user_images=False, step=12)
CPU = torch.device("cpu")


def header(**changes) -> str:
    """The description of a checkpoint as JSON."""
    return json.dumps({"format": FORMAT, "info": INFO.to_dict() | changes})


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "step-00000012.safetensors"
    write_checkpoint(path, checkpoint_tensors(build_model(CONFIG, 1, 3), None), INFO)
    return path


def test_a_checkpoint_carries_its_network_config_and_classes(saved):
    loaded = load_checkpoint(saved, CPU)
    assert loaded.info == INFO
    assert loaded.info.config.adv_eps == pytest.approx(16 / 255)
    assert loaded.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    torch.manual_seed(0)
    expected = build_model(CONFIG, 1, 3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("first_bytes", [b"\x80", b"PK"])
def test_a_header_that_begins_like_a_pickle_is_still_a_checkpoint(saved, first_bytes):
    """safetensors begins with its header's length, which can be any number; spaces may pad the header."""
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    longer = next(n for n in range(length, length + 2**17) if n.to_bytes(8, "little").startswith(first_bytes))
    padding = b" " * (longer - length)
    saved.write_bytes(longer.to_bytes(8, "little") + content[8 : 8 + length] + padding + content[8 + length :])
    assert load_checkpoint(saved, CPU).info == INFO


def test_weights_that_are_not_finite_are_refused(saved):
    tensors = safetensors.torch.load_file(saved)
    tensors["head.bias"][0] = float("nan")
    saved.write_bytes(encode(tensors, {"format": FORMAT, "info": INFO.to_dict()})[0])
    with pytest.raises(DataError, match="not finite"):
        load_checkpoint(saved, CPU)


def test_images_that_are_too_large_for_a_checkpoint_are_refused_before_training():
    pixels = torch.zeros(4, 1, 2, 5000, dtype=torch.uint8)
    part = ImageSet(pixels, torch.tensor([0, 1, 0, 1]), ("a", "b"))
    with pytest.raises(DataError, match="resize them to at most 4096 pixels"):
        CheckpointInfo.from_splits(CONFIG, Splits("wide", part, part, part))


def test_a_file_without_read_permission_is_not_called_damaged(saved, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(RjemError, match="Permission denied") as error:
        load_checkpoint(saved, CPU)
    assert not isinstance(error.value, (DataError, AbsentError))


def test_a_missing_file_is_absent(tmp_path):
    with pytest.raises(AbsentError, match="No such file"):
        load_checkpoint(tmp_path / "none.safetensors", CPU)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was loaded",))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, kind):
    path = tmp_path / "model.pt"
    if kind == "torch":
        torch.save({"model": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"pickle, which can run any code; rjem import reads it"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"step-00000012.safetensors is not a valid safetensors file"):
        load_checkpoint(saved, CPU)


def test_a_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read checkpoint"):
        load_checkpoint(tmp_path, CPU)


def test_other_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="not an rjem checkpoint"):
        load_checkpoint(path, CPU)


def test_an_npz_is_named(tmp_path):
    path = tmp_path / "samples.safetensors"
    with path.open("wb") as file:
        np.savez(file, arr_0=np.zeros(3))
    with pytest.raises(DataError, match="is an .npz file"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"info": 3}',
        header().replace('"depth": 10', '"depth": 16'),
        header().replace('"depth": 10', '"depth": 6000000004'),
        header().replace('"width": 1', '"width": 1000000'),
        header().replace(FORMAT, "rjem-checkpoint-99"),
        header(image_shape=[1, 8, 10**9]),
        header(image_shape=[1, 8]),
        header(image_shape=[2, 8, 8]),
        header(class_names=[]),
        header(class_names=["a", "b", 3]),
        header(class_names=["a", "b", "\ud800"]),
        header(data_digest="../../x"),
        header(user_images="no"),
        header(step=-1),
        header(step=1.5),
        header(images_seen=2**64),
        header(val_accuracy=float("nan")),
        header(state_sha256="none"),
        header(unknown=1),
        header(config=None),
    ],
)
def test_weights_that_do_not_match_their_description_are_refused(saved, text):
    """Even if their sha256 is right, and before they take memory that the file does not have."""
    saved.write_bytes(encode(safetensors.torch.load_file(saved), json.loads(text))[0])
    with pytest.raises(DataError, match="its content is invalid"):
        load_checkpoint(saved, CPU)


@pytest.mark.parametrize("text", ["", "[]", "not json", "{}", '{"sha256": "0", "description": 3}', "[" * 100_000])
def test_an_invalid_description_is_refused(saved, text):
    safetensors.torch.save_file(safetensors.torch.load_file(saved), saved, {METADATA_KEY: text})
    for read in (read_info, lambda path: load_checkpoint(path, CPU)):
        with pytest.raises(DataError, match="description that rjem cannot read"):
            read(saved)


def test_any_flipped_bit_is_found(saved):
    """In the weights, their names, the config, or the sha256 itself."""
    content = saved.read_bytes()
    header_size = 8 + int.from_bytes(content[:8], "little")
    generator = random.Random(0)
    indices = [generator.randrange(header_size) for _ in range(60)]
    indices += [generator.randrange(header_size, len(content)) for _ in range(20)]
    for index in indices:
        flipped = bytearray(content)
        flipped[index] ^= 1 << generator.randrange(8)
        saved.write_bytes(flipped)
        try:
            load_checkpoint(saved, CPU)
        except DataError:
            continue
        assert content[index : index + 1] == b" ", index  # padding of the header


def test_a_file_that_reads_back_differently_never_replaces_the_old_one(saved, monkeypatch):
    content = saved.read_bytes()
    monkeypatch.setattr(files.os, "fsync", lambda handle: os.pwrite(handle, b"x", 20) if handle > 2 else None)
    with pytest.raises(RjemError, match="does not read back"):
        write_checkpoint(saved, checkpoint_tensors(build_model(CONFIG, 1, 3), None), replace(INFO, step=13))
    assert saved.read_bytes() == content and list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("prior.factor.1"),
        lambda tensors: tensors.pop("prior.mean"),
        lambda tensors: tensors.update({"prior.factor.9": torch.ones(64, 2)}),
        lambda tensors: tensors.update({"prior.extra": torch.zeros(2)}),
        lambda tensors: tensors.update({"prior.mean": tensors["prior.mean"][0]}),
        lambda tensors: tensors.update({"prior.mean": tensors["prior.mean"].double()}),
        lambda tensors: tensors.update({"prior.mean": tensors["prior.mean"] * torch.nan}),
        lambda tensors: tensors.update({"prior.factor.0": tensors["prior.factor.0"][:-1]}),
        lambda tensors: tensors.update({"prior.factor.0": tensors["prior.factor.0"][:, :0]}),
        lambda tensors: tensors.update({"prior.factor.0": tensors["prior.factor.0"].to(torch.float8_e4m3fn)}),
        lambda tensors: tensors.update({f"prior.factor.{label}": torch.ones(64, 0) for label in range(3)}),
    ],
)
def test_a_forged_prior_is_one_line(tmp_path, change):
    factors = tuple(torch.ones(64, 2) for _ in range(3))
    prior = ClassGaussianPrior(torch.zeros(3, 64), factors, (1, 8, 8))
    path = tmp_path / "step-00000012.safetensors"
    write_checkpoint(path, checkpoint_tensors(build_model(CONFIG, 1, 3), prior), INFO)
    assert load_checkpoint(path, torch.device("cpu")).prior is not None
    tensors, description = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors, description)
    with pytest.raises(DataError, match=r"its content is invalid \(the prior"):
        load_checkpoint(path, torch.device("cpu"))
