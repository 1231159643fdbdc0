import json
import pickle

import pytest
import safetensors.torch
import torch

from rjem_cli.config import TrainConfig
from rjem_cli.engine.model.checkpoint import FORMAT, METADATA_KEY, CheckpointInfo, load_checkpoint, save_checkpoint
from rjem_cli.engine.model.wide_resnet import build_model
from rjem_cli.errors import AbsentError, DataError

CONFIG = TrainConfig(depth=10, width=1, adv_eps="8/255")
INFO = CheckpointInfo(CONFIG, ("a", "b", "c"), (1, 8, 8), "tiny", "0" * 64, step=12)
CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "step-00000012.safetensors"
    save_checkpoint(path, build_model(CONFIG, 1, 3), INFO)
    return path


def test_a_checkpoint_carries_its_network_config_and_classes(saved):
    loaded = load_checkpoint(saved, CPU)
    assert loaded.info == INFO
    assert loaded.info.config.adv_eps == pytest.approx(16 / 255)
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
    header = json.dumps({"format": FORMAT, "info": INFO.to_dict()})
    safetensors.torch.save_file(tensors, saved, {METADATA_KEY: header})
    with pytest.raises(DataError, match="not finite"):
        load_checkpoint(saved, CPU)


def test_no_file_is_absent(tmp_path):
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
    with pytest.raises(DataError, match=r"pickle, which can run any code; rjem never loads those"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"step-00000012.safetensors is not a whole safetensors file"):
        load_checkpoint(saved, CPU)


def test_a_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read checkpoint"):
        load_checkpoint(tmp_path, CPU)


def test_other_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="not an rjem checkpoint"):
        load_checkpoint(path, CPU)


HEADER = json.dumps({"format": FORMAT, "info": INFO.to_dict()})


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "not json",
        HEADER.replace('"depth": 10', '"depth": 16'),
        HEADER.replace(FORMAT, "rjem-checkpoint-99"),
    ],
)
def test_weights_that_do_not_fit_their_description_are_refused(saved, text):
    tensors = safetensors.torch.load_file(saved)
    safetensors.torch.save_file(tensors, saved, {METADATA_KEY: text})
    with pytest.raises(DataError, match="does not fit its own description"):
        load_checkpoint(saved, CPU)
