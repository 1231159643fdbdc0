"""Small image files, in folders and archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from PIL import Image


def png(level: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, level if mode != "RGB" else (level, 0, 0)).save(content, format="PNG")
    return content.getvalue()


def tree(per_class: int = 10, mode: str = "RGB") -> dict[str, bytes]:
    names = ("cat", "dog")
    return {
        f"{name}/{i:02d}.png": png(100 * c + i, mode=mode) for c, name in enumerate(names) for i in range(per_class)
    }


def write(files: dict[str, bytes], target: Path) -> Path:
    """Write a folder, .zip, .tar or .tar.xz, depending on the target's suffix."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif ".tar" in target.name:
        with tarfile.open(target, "w:xz" if target.suffix == ".xz" else "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        for name, content in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
    return target
