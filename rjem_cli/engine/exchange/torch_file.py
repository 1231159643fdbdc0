"""Files of torch.save and of safetensors, read without running anything and with memory bounded by the file's size.

torch.save has written two formats. Since 2020 (PyTorch 1.6) a zip: `NAME/data.pkl`, and `NAME/data/KEY` for the numbers
of each stored array. Before, one stream: four pickles (a magic number, the version, the sizes of numbers, the value),
a pickle with the list of keys, and for each key the count and the numbers.
"""

import contextlib
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rjem_cli.engine.exchange.inert_pickle import (
    MAX_DIMENSIONS,
    MAX_PICKLE,
    StoredArray,
    StoredTensor,
    Unknown,
    Value,
    read_pickle,
)
from rjem_cli.errors import AbsentError, DataError, summarize

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of the older format
PROTOCOL_VERSION = 1001
MEMORY_FACTOR = 8  # of the file's size
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
COUNT = struct.Struct("<q")  # of the numbers in an array of the older format


@dataclass
class TorchFile:
    """`content`: what was saved, with `StoredTensor`s for tensors and `Unknown`s for what is not data.

    `read_array` returns the bytes of a stored array. `limit`: bytes that may still be read and held: a small file may
    have any number of tensors that are views of one array."""

    path: Path
    content: Value
    read_array: Callable[[StoredArray], bytes]
    limit: int
    tensors: dict[StoredTensor, Tensor] = field(default_factory=dict)
    arrays: dict[StoredArray, bytes] = field(default_factory=dict)

    def read_tensor(self, stored: StoredTensor) -> Tensor:
        """Contiguous, on the host. Equal views of one array are one tensor. Raises DataError for an array that is not
        in the file."""
        if stored not in self.tensors:
            self.tensors[stored] = self.build_tensor(stored)
        return self.tensors[stored]

    def build_tensor(self, stored: StoredTensor) -> Tensor:
        array, count = stored.array, math.prod(stored.shape)
        self.spend(count * array.dtype.itemsize)
        if not count:
            return torch.empty(stored.shape, dtype=array.dtype)
        flat = torch.frombuffer(bytearray(self.load_array(array)), dtype=torch.uint8).view(array.dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset).clone(memory_format=torch.contiguous_format)

    def load_array(self, array: StoredArray) -> bytes:
        """It stays in memory: all tensors of a file may be views of it."""
        if array not in self.arrays:
            size = array.count * array.dtype.itemsize
            self.spend(size)
            content = self.read_array(array)
            if len(content) != size:
                raise DataError(f"{self.path} is damaged: {len(content)} bytes in place of {size} for a tensor")
            self.arrays[array] = content
        return self.arrays[array]

    def spend(self, size: int) -> None:
        self.limit -= size
        if self.limit < 0:
            raise DataError(f"{self.path} has more tensors than bytes; export it again")


@contextlib.contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Raises AbsentError for a missing file, DataError for one that is damaged, not of torch.save, or hostile."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise DataError(f"{path} is not a file; give a checkpoint file of another project")
        with path.open("rb") as file:
            yield read_torch_file(file, path)
    except FileNotFoundError:
        raise AbsentError(f"{path} does not exist; give a checkpoint file of another project") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def read_torch_file(file: IO[bytes], path: Path) -> TorchFile:
    start = file.read(8)
    file.seek(0)
    if start[:2] == b"PK":
        return read_zip(file, path)
    if start[:1] == b"\x80":
        return read_stream(file, path)
    if (len(start) == 8 and start[7:] == b"\x00") or path.suffix == ".safetensors":
        return read_safetensors(path)
    raise DataError(f"{path} is neither of torch.save nor of safetensors; give a .pt, .pth or .safetensors file")


@contextlib.contextmanager
def zip_errors(path: Path) -> Iterator[None]:
    """Turn whatever zipfile raises for a damaged file into a DataError."""
    try:
        yield
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OverflowError, struct.error) as error:
        raise DataError(f"{path} is damaged: {summarize(error)}") from None


def read_zip(file: IO[bytes], path: Path) -> TorchFile:
    """The numbers of an array are not compressed, so none can take more memory than the file."""
    with zip_errors(path):
        archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    names = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise DataError(f"{path} is a zip, but not one of torch.save; give a checkpoint file")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise DataError(f"{path} is TorchScript, which is code; export the state_dict of the network")

    def read_entry(name: str, size: int | None = None) -> bytes:
        entry = entries.get(folder + name)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or size not in (None, entry.file_size):
            raise DataError(f"{path} is damaged: {name[:40]} is missing, compressed or of another size")
        if name == "data.pkl" and entry.file_size > MAX_PICKLE:
            raise DataError(f"{path} has a pickle of {entry.file_size:,} bytes; export the state_dict alone")
        with zip_errors(path):
            return archive.read(entry)

    if f"{folder}byteorder" in entries and read_entry("byteorder", 6) != b"little":
        raise DataError(f"{path} is big-endian; export it on another machine")
    content, _ = parse_pickle(io.BytesIO(read_entry("data.pkl")), path)

    def read_array(array: StoredArray) -> bytes:
        return read_entry(f"data/{array.key}", array.count * array.dtype.itemsize)

    return TorchFile(path, content, read_array, limit=MEMORY_FACTOR * os.fstat(file.fileno()).st_size)


def read_stream(file: IO[bytes], path: Path) -> TorchFile:
    """The older format."""
    size = os.fstat(file.fileno()).st_size
    if parse_pickle(file, path)[0] != MAGIC_NUMBER or parse_pickle(file, path)[0] != PROTOCOL_VERSION:
        raise DataError(f"{path} is a pickle, but not one of torch.save; give a checkpoint file")
    system, _ = parse_pickle(file, path)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise DataError(f"{path} is big-endian; export it on another machine")
    content, arrays = parse_pickle(file, path)
    keys, _ = parse_pickle(file, path)
    places: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else []:
        array, header = arrays.get(key) if isinstance(key, str) else None, file.read(COUNT.size)
        if array is None or len(header) < COUNT.size or COUNT.unpack(header)[0] != array.count:
            raise DataError(f"{path} is damaged: its arrays do not fit its pickle")
        places[key] = file.tell()
        file.seek(array.count * array.dtype.itemsize, io.SEEK_CUR)

    def read_array(array: StoredArray) -> bytes:
        if array.key not in places:
            raise DataError(f"{path} is damaged: it has no array {array.key}")
        file.seek(places[array.key])
        return file.read(min(array.count * array.dtype.itemsize, size))

    return TorchFile(path, content, read_array, limit=MEMORY_FACTOR * size)


def parse_pickle(file: IO[bytes], path: Path) -> tuple[Value, dict[str, StoredArray]]:
    try:
        return read_pickle(file)
    except ValueError as error:
        raise DataError(f"cannot read {path}: {summarize(error)}") from None


def read_safetensors(path: Path) -> TorchFile:
    """`content` is a dict of all tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            content = {name: describe_slice(name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{path} is not a valid safetensors file ({summarize(error)})") from None

    def read_array(array: StoredArray) -> bytes:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(array.key)
        return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()

    return TorchFile(path, content, read_array, limit=MEMORY_FACTOR * path.stat().st_size)


def describe_slice(name: str, part: Any) -> StoredTensor | Unknown:
    shape = tuple(part.get_shape())
    if (dtype := SAFETENSORS_DTYPES.get(part.get_dtype())) is None or len(shape) > MAX_DIMENSIONS:
        return Unknown(f"a tensor of type {part.get_dtype()}")
    stride = tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
    return StoredTensor(StoredArray(name, dtype, math.prod(shape)), 0, shape, stride)
