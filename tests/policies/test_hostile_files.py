"""Files that somebody else made, or a disk damaged: whatever is in them, rjem gives one line, writes nowhere else, and
takes no more memory than they deserve."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rjem_cli.config.sources import file_source, resolve
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.models.checkpoint import (
    FORMAT,
    CheckpointInfo,
    checkpoint_tensors,
    load_checkpoint,
    read_info,
    write_checkpoint,
)
from rjem_cli.engine.models.tensor_file import encode, read_tensors
from rjem_cli.engine.networks.build import build_model
from rjem_cli.errors import RjemError
from tests.image_files import png, write

MANY = settings(
    max_examples=int(os.environ.get("RJEM_FUZZ", "100")),
    deadline=None,
    derandomize="RJEM_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
LETTERS = "abcdefghi"
MOST_MEMORY = 2**30  # bytes beyond those of the network libraries
INFO = CheckpointInfo(
    TrainConfig(depth=10, width=1), ("a", "b"), (1, 8, 8), "tiny", "0" * 64, user_images=False, step=12
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*TrainConfig().to_dict(), "adv_epz"]) | st.text(max_size=10)


def memory_of(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since the mark was set. 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) * 1024


@contextlib.contextmanager
def watched(folder: Path):
    """Fails where anything beside `folder`'s own content comes up in its neighbourhood, or memory runs away."""
    before, used = set(folder.parent.rglob("*")), memory_of("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark of memory begins anew
    yield
    assert set(folder.parent.rglob("*")) == before
    taken = memory_of("VmHWM") - used
    assert taken < MOST_MEMORY, f"{taken / 1e9:.1f} GB"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "in" / "step-00000012.safetensors"
    write_checkpoint(path, checkpoint_tensors(build_model(INFO.config, 1, 2), None), INFO)
    return path, path.read_bytes(), read_tensors(path)[0]


def known(action, *arguments) -> None:
    """Any outcome but an error that rjem does not word."""
    with contextlib.suppress(RjemError):
        action(*arguments)


@MANY
@given(st.dictionaries(KEYS, JSON, max_size=6), st.binary(max_size=40))
def test_any_yaml_is_a_config_or_one_line(tmp_path_factory, values, noise):
    folder = tmp_path_factory.mktemp("config") / "in"
    folder.mkdir()
    for content in (yaml.safe_dump(values, allow_unicode=True).encode(errors="replace"), noise):
        (folder / "x.yaml").write_bytes(content)
        with watched(folder):
            known(lambda: resolve(TrainConfig, [file_source(str(folder / "x.yaml"))]))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{new}: &{new} [{', '.join(9 * ['*' + old])}]\n" for old, new in itertools.pairwise(LETTERS))
        + "lr: *i",
        "a: &a {x: 1}\n"
        + "".join(
            f"{new}: &{new} {{<<: [{', '.join(9 * ['*' + old])}]}}\n" for old, new in zip("abcdefgh", "bcdefghi")
        ),
        "lr: &a [*a]",
        "? [a, b]\n: 1",
        "!!python/object/apply:os.system ['touch owned']",
        "lr: !!python/name:os.system",
        "x" * (2**20 + 1),
    ],
    ids=[
        "aliases that explode",
        "merges that explode",
        "a list in itself",
        "a list as key",
        "code",
        "a name",
        "a megabyte",
    ],
)
def test_hostile_yaml(tmp_path, monkeypatch, text):
    folder = tmp_path / "in"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("x.yaml").write_text(text)
    with watched(folder), pytest.raises(RjemError):
        resolve(TrainConfig, [file_source("x.yaml")])


@MANY
@given(st.data())
def test_any_bytes_are_a_checkpoint_or_one_line(checkpoint, data):
    path, content, _ = checkpoint
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "noise"]))
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 3000))
    some = data.draw(st.binary(min_size=1, max_size=50))
    path.write_bytes(
        {
            "flip": content[:place] + some + content[place + len(some) :],
            "cut": content[:place],
            "insert": content[:place] + some + content[place:],
            "noise": some,
        }[kind]
    )
    with watched(path.parent):
        known(read_info, path)
        known(load_checkpoint, path, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@MANY
@given(st.data())
def test_any_description_is_a_checkpoint_or_one_line(checkpoint, data):
    """Whoever makes a file can also make its sha256."""
    path, _, tensors = checkpoint
    description = {"format": FORMAT, "info": copy.deepcopy(json.loads(json.dumps(INFO.to_dict())))}
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from([description, description["info"], description["info"]["config"]]))
        if isinstance(part, dict):
            numbers = st.sampled_from([0, -1, 2**31, 2**63, 10**30, 6 * 10**8 + 4, "../../../x"])
            part[data.draw(st.sampled_from(sorted(part)))] = data.draw(JSON | numbers)
        if not isinstance(description.get("info"), dict) or not isinstance(description["info"].get("config"), dict):
            break
    path.write_bytes(encode(tensors, description)[0])
    with watched(path.parent):
        known(load_checkpoint, path, torch.device("cpu"))


ORDINARY = "cat/1.png dog/2.png cat/1.png/ labels.csv meta.json a/b.cls train/cat/3.png"
HOSTILE = "../out.png ../../x/y.png /abs/z.png cat/../../w.png C:\\x.png cat/\0.png"
NAMES = st.sampled_from([*ORDINARY.split(" "), *HOSTILE.split(" "), f"cat/{'n' * 300}.png"])
IMAGE = png(7)
CONTENTS = st.sampled_from([IMAGE, IMAGE[:40], b"", b"file,class\na,b\n", b"{}", b"[" * 2000]) | st.binary(max_size=60)
TYPES = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@MANY
@given(
    st.lists(
        st.tuples(NAMES, CONTENTS, TYPES, st.sampled_from(["/etc/passwd", "../out.png", "cat/1.png"])), max_size=6
    ),
    st.sampled_from(["w", "w:gz", "w:xz", "zip"]),
    st.none() | st.integers(0, 3000),
)
def test_any_archive_is_images_or_one_line(tmp_path_factory, members, mode, cut):
    folder, content = tmp_path_factory.mktemp("around") / "in", io.BytesIO()
    folder.mkdir()
    with contextlib.suppress(ValueError):  # a name that no archive takes
        if mode == "zip":
            with zipfile.ZipFile(content, "w") as archive:
                for name, part, _, _ in members:
                    archive.writestr(name, part)
        else:
            with tarfile.open(fileobj=content, mode=mode) as archive:
                for name, part, kind, target in members:
                    info = tarfile.TarInfo(name)
                    info.type, info.linkname, info.size = kind, target, len(part) if kind == tarfile.REGTYPE else 0
                    archive.addfile(info, io.BytesIO(part))
    path = folder / ("x.zip" if mode == "zip" else "x.tar")
    path.write_bytes(content.getvalue()[:cut])
    with watched(folder):
        known(lambda: read_collection(str(path)).group_by_split())


def bomb_of_one(folder: Path) -> Path:
    """400 million pixels in half a megabyte."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(content, format="PNG")
    return write({"cat/1.png": content.getvalue(), "dog/1.png": IMAGE}, folder / "in" / "x.tar.xz")


def bomb_of_many(folder: Path) -> Path:
    """Two gigabytes of zeros that say they are images."""
    path = folder / "in" / "x.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as archive:
        info = tarfile.TarInfo("cat/00.bmp")
        info.size = 60 * 2**20
        with Path("/dev/zero").open("rb") as zeros:
            for number in range(30):
                info.name = f"cat/{number:02d}.bmp"
                archive.addfile(info, zeros)
    return path


def bomb_of_a_header(folder: Path) -> Path:
    """A member's name of a gigabyte."""
    path = folder / "in" / "x.tar.xz"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    with tarfile.open(path, "w:xz", preset=0) as archive, Path("/dev/zero").open("rb") as zeros:
        archive.addfile(info, zeros)
    return path


def bomb_of_a_lie(folder: Path) -> Path:
    """A member that says it has more bytes than any disk."""
    path = write({"cat/1.png": IMAGE}, folder / "in" / "x.tar")
    content = bytearray(path.read_bytes())
    content[124:136] = b"77777777777\0"
    path.write_bytes(content)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc, and reads /dev/zero")
@pytest.mark.parametrize(
    "bomb", [bomb_of_one, pytest.param(bomb_of_many, marks=pytest.mark.slow), bomb_of_a_header, bomb_of_a_lie]
)
def test_bombs_are_refused(tmp_path, bomb):
    (tmp_path / "in").mkdir()
    path = bomb(tmp_path)
    with watched(tmp_path / "in"), pytest.raises(RjemError):
        read_collection(str(path)).group_by_split()
