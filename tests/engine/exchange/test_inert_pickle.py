"""Nothing that a pickle names is ever run, looked up or changed; and what is read is what torch reads."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from rjem_cli.engine.exchange.inert_pickle import StoredTensor, Unknown, read_pickle
from rjem_cli.engine.exchange.recognise import recognise
from rjem_cli.engine.exchange.torch_file import open_torch_file
from rjem_cli.errors import DataError, RjemError
from tests.foreign_networks import jem_state
from tests.policies.test_hostile_files import watched

OWNED = "/tmp/rjem-owned"
PLAIN = {
    "contiguous": torch.randn(2, 3),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "view": torch.arange(10)[3:7],
    "scalar": torch.tensor(5),
    "empty": torch.empty(0, 3),
    "half": torch.randn(3).half(),
    "bf16": torch.randn(3).bfloat16(),
    "bool": torch.tensor([True, False]),
    "uint8": torch.arange(4, dtype=torch.uint8),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def parse(content: bytes):
    return read_pickle(io.BytesIO(content))[0]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_are_those_that_torch_reads(tmp_path, zipped):
    torch.save(
        {"tensors": PLAIN, "lr": 0.1, "name": "é", "list": [1, (2, None)]},
        tmp_path / "m.pt",
        _use_new_zipfile_serialization=zipped,
    )
    expected = torch.load(tmp_path / "m.pt", weights_only=True)
    with open_torch_file(tmp_path / "m.pt") as file:
        assert {key: file.content[key] for key in ("lr", "name", "list")} == {
            "lr": 0.1,
            "name": "é",
            "list": [1, (2, None)],
        }
        for name, tensor in expected["tensors"].items():
            read = file.read_tensor(file.content["tensors"][name])
            assert read.dtype == tensor.dtype and torch.equal(read, tensor), name


class Command:
    """Its pickle runs a shell command."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


ATTACKS = {
    "os.system": Command(os.system, f"touch {OWNED}"),
    "eval": Command(eval, f"open({OWNED!r}, 'w')"),
    "exec": Command(exec, f"open({OWNED!r}, 'w')"),
    "open": Command(open, OWNED, "w"),
    "getattr": Command(getattr, "text", "upper"),
    "bytearray": Command(bytearray, 10**12),
    "exit": Command(sys.exit, 3),
    "torch.load": Command(torch.load, OWNED),
    "tensor of any size": Command(torch.empty, 10**12),
    "set a module's attribute": Command(setattr, "os", "path"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_calls_are_objects_that_do_nothing(name, protocol):
    value = parse(pickle.dumps({"a": ATTACKS[name], "b": 1}, protocol))
    assert isinstance(value["a"], Unknown) and value["b"] == 1
    assert not Path(OWNED).exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_checkpoint_with_an_attack_in_it_is_read_without_it(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    torch.save({"model_state_dict": jem_state(), "args": ATTACKS[name]}, folder / "m.pt")
    with watched(folder), open_torch_file(folder / "m.pt") as file:
        assert recognise(file).match.layout.name == "jempp"
    assert not Path(OWNED).exists()


def test_names_are_not_looked_up():
    before = set(sys.modules)
    value = parse(b"\x80\x02cantigravity\nfly\nq\x00(K\x01tR.")
    assert value.name == "antigravity.fly" and set(sys.modules) == before


def test_a_state_cannot_be_set_on_anything_of_python():
    """BUILD on a function would change its defaults for the whole process."""
    content = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__K\x01sb."
    before = torch._utils._rebuild_tensor_v2.__defaults__
    assert parse(content).state == {"__defaults__": 1}
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


DEEP = 100_000
HOSTILE = {
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.",
    "deep tuples as a name": b"\x80\x04)" + b"\x85" * DEEP + b"\x8c\x01a\x93.",
    "lists that double": b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(200)) + b".",
    "bytes of any length": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
    "a frame of any length": b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"N.",
    "text of any length": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"N.",
    "a long integer": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "a long decimal": b"L" + b"9" * 100_000 + b"L\n.",
    "no end": b"\x80\x02" + b"N" * 1000,
    "an empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "an unknown memo": b"\x80\x02h\x09.",
    "an extension": b"\x80\x02\x82\x01.",
    "too many operations": b"\x80\x02" + b"N0" * 1_000_000 + b"N.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dict that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_one_error_or_harmless(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "m.pt").write_bytes(HOSTILE[name])
    with zipfile.ZipFile(folder / "z.pt", "w") as archive:
        archive.writestr("archive/data.pkl", HOSTILE[name])
    with watched(folder):
        for path in (folder / "m.pt", folder / "z.pt"):
            with pytest.raises(RjemError) as error, open_torch_file(path) as file:
                recognise(file)
            assert "\n" not in str(error.value) and len(str(error.value)) < 500


def stored(key="0", count=4, offset=0, shape=(2, 2), stride=(2, 1), kind="FloatStorage") -> bytes:
    """A pickle of {"f.conv1.weight": a tensor} with these numbers."""

    class Reference:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", getattr(torch, kind), key, "cpu", count) if isinstance(value, Reference) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Reference(), offset, shape, stride, False, {})

    content = io.BytesIO()
    Pickler(content, 2).dump({"weight": Tensor()})
    return content.getvalue()


@pytest.mark.parametrize(
    "numbers",
    [
        {"shape": (10**9, 10**9), "stride": (0, 0)},
        {"shape": (2, 3)},
        {"offset": 1},
        {"offset": -1},
        {"stride": (-2, 1)},
        {"shape": (-2, -2)},
        {"stride": (2,)},
        {"count": 10**12, "shape": (10**12,), "stride": (1,)},
        {"count": -4},
        {"key": "../../etc/passwd"},
        {"key": "absent"},
        {"shape": (1,) * 100, "stride": (1,) * 100},
    ],
    ids=str,
)
def test_a_tensor_outside_of_its_array_is_refused(tmp_path, numbers):
    folder = tmp_path / "in"
    folder.mkdir()
    with zipfile.ZipFile(folder / "z.pt", "w") as archive:
        archive.writestr("archive/data.pkl", stored(**numbers))
        archive.writestr("archive/data/0", bytes(16))
    with watched(folder), open_torch_file(folder / "z.pt") as file:
        tensor = file.content["weight"]
        if isinstance(tensor, StoredTensor):  # the array is not there
            assert {"key", "count"} & numbers.keys()
            with pytest.raises(DataError):
                file.read_tensor(tensor)


def test_a_compressed_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", stored(count=2**24, shape=(2**24,), stride=(1,)))
        archive.writestr("archive/data/0", bytes(2**26))
    with pytest.raises(DataError), open_torch_file(tmp_path / "z.pt") as file:
        file.read_tensor(file.content["weight"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_200_damaged_files_run_nothing_and_give_one_line(tmp_path, zipped):
    folder, rng = tmp_path / "in", random.Random(0)
    folder.mkdir()
    path = folder / "m.pt"
    saved = {"model_state_dict": jem_state(), "args": argparse.Namespace(a=1), "x": ATTACKS["os.system"]}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    start = content.find(b"model_state_dict")
    outcomes = set()
    with watched(folder):
        for _ in range(100):
            damaged = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)
            for _ in range(rng.randrange(1, 20)):
                near = rng.randrange(20_000) + start - 200 if rng.random() < 0.8 else rng.randrange(len(damaged))
                damaged[near % len(damaged)] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                with open_torch_file(path) as file:
                    recognise(file)
                outcomes.add("read")
            except RjemError:
                outcomes.add("error")
    assert outcomes == {"error", "read"} and not Path(OWNED).exists()
