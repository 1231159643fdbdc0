"""Write a network so that another project's own code, or any program that reads safetensors, loads it."""

import io
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.engine.exchange.importer import UNUSED_FILE
from rjem_cli.engine.exchange.layouts import LAYOUTS, NORMALIZER, Layout, their_names
from rjem_cli.engine.exchange.recognise import MU_SIGMA
from rjem_cli.engine.models.checkpoint import Checkpoint, load_buffer
from rjem_cli.engine.models.tensor_file import read_tensors
from rjem_cli.errors import ConfigError, pluralize
from rjem_cli.files import make_dir, write_atomically
from rjem_cli.paths import find_run_dir

CCF = """\
network = CCF(depth={depth}, width={width}, norm={norm}, n_classes={classes}{model})
network.load_state_dict(torch.load({file}, map_location="cpu")["model_state_dict"])
logits = network.eval().classify(x)  # x in [-1, 1]"""
WIDE_RESNET = """\
from models.wideresnet import WideResNet
network = WideResNet(depth={depth}, num_classes={classes}, widen_factor={width})
network.load_state_dict(torch.load({file}, map_location="cpu"))
logits = network.eval()(x)  # x in [0, 1]"""
LOADERS = {  # Python code; x are images
    "jem": f"# in the folder of JEM\nimport torch\nfrom train_wrn_ebm import CCF\n{CCF}",
    "jempp": f"# in the folder of JEM++\nimport torch\nfrom models.jem_models import CCF\n{CCF}",
    "sadajem": f"# in the folder of SADA-JEM\nimport torch\nfrom models.jem_models import CCF\n{CCF}",
    "trades": f"# in the folder of TRADES\nimport torch\n{WIDE_RESNET}",
    "dat": """\
# in the folder of DAT; the network normalises images itself
import torch
from rebm.models.wide_resnet_innoutrobustness import WideResNet
network = WideResNet({depth}, {classes}, widen_factor={width})
network.load_state_dict(torch.load({file}, map_location="cpu"))
logits = network.eval()(x)  # x in [0, 1]""",
    "robustness": """\
# needs a CUDA GPU
from robustness.datasets import CIFAR
from robustness.model_utils import make_and_restore_model
network, _ = make_and_restore_model(arch="resnet50", dataset=CIFAR(), resume_path={file})
logits, _ = network.eval()(x)  # x in [0, 1]""",
    "torch": 'import torch\ntensors = torch.load({file}, map_location="cpu")',
    "safetensors": "from safetensors.torch import load_file\ntensors = load_file({file})",
    "huggingface": """\
import rjem_cli
model = rjem_cli.load({file})
logits = model(x)  # x in [-1, 1]""",
}
PLAIN = ("torch", "safetensors", "huggingface")  # with the names of rjem
SUFFIXES = {"safetensors": ".safetensors", "huggingface": ""}  # of the output, else .pt
PROJECT_SHAPE = (3, 32, 32)  # of the images that all layouts were written for
MODEL_FILE = "model.safetensors"


def loader_text(checkpoint: Checkpoint, layout: str, path: Path) -> str:
    """Python code that loads the file."""
    config = checkpoint.info.config
    values = {"depth": config.depth, "width": config.width, "classes": len(checkpoint.info.class_names)}
    norm = '"batch"' if config.norm_layer == "batch" else None
    is_yopo = layout == "jempp" and (checkpoint.info.origin or {}).get("doubled")
    model = ', model="yopo"' if is_yopo else ""
    file = json.dumps(str(path / MODEL_FILE if layout == "huggingface" else path))
    return LOADERS[layout].format(**values, norm=norm, model=model, file=file)


def find_limits(checkpoint: Checkpoint, layout: str) -> str | None:
    """Why the project's own code may not load the file; None if nothing is known."""
    shape = checkpoint.info.image_shape
    if layout not in PLAIN and shape != PROJECT_SHAPE:
        return f"the project's own code takes images of {PROJECT_SHAPE} (C, H, W), this network takes {shape}"
    return None


def write_export(checkpoint: Checkpoint, layout: str, path: Path) -> None:
    """Raises ConfigError if the layout does not fit, DataError for damaged files of the run, RjemError if something
    cannot be written."""
    if layout == "huggingface":
        write_folder(checkpoint, make_dir(path))
    elif layout == "safetensors":
        tensors = host_tensors(checkpoint)
        write_atomically(path, safetensors.torch.save(tensors, {"format": "pt"}), read_back=True)
    else:
        buffer = io.BytesIO()
        torch.save(host_tensors(checkpoint) if layout in PLAIN else export_content(checkpoint, LAYOUTS[layout]), buffer)
        write_atomically(path, buffer.getvalue(), read_back=True)


def host_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The network's tensors, as rjem names them."""
    return {name: part.detach().cpu().contiguous() for name, part in checkpoint.model.state_dict().items()}


def export_content(checkpoint: Checkpoint, layout: Layout) -> Any:
    """What torch.save writes for a layout."""
    tensors = export_tensors(checkpoint, layout)
    if layout.arch == "wrn":
        buffer = load_buffer(checkpoint)  # JEM starts each chain from noise if the list is empty
        return {layout.key: tensors, "replay_buffer": [] if buffer is None else buffer}
    return {layout.key: tensors, "epoch": 0} if layout.key else tensors


def export_tensors(checkpoint: Checkpoint, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a network as the project names them. An imported network gets those of its file back. Raises
    ConfigError if the layout does not fit."""
    check_layout(checkpoint, layout.name)
    unused = read_unused(checkpoint, layout)
    ours, origin = host_tensors(checkpoint), checkpoint.info.origin
    tensors = {theirs: ours[name] for name, theirs in their_names(layout, checkpoint.info.config, ours).items()}
    if layout.normalizer:
        tensors |= {theirs: ours[name][:, None, None] for name, theirs in zip(NORMALIZER, layout.normalizer)}
    tensors |= layout.fill(tensors) if unused is None else unused
    if layout.always_doubled or (unused is not None and origin and origin.get("doubled")):
        tensors |= {copy: tensor for name, tensor in tensors.items() for copy in layout.copies(name)}
    return {layout.prefix + name: tensor for name, tensor in tensors.items()}


def check_layout(checkpoint: Checkpoint, name: str) -> None:
    """Raises ConfigError if the network cannot be written in this layout."""
    if name in PLAIN:
        return
    if reason := find_obstacle(checkpoint, LAYOUTS[name], read_unused(checkpoint, LAYOUTS[name])):
        fitting = [other for other, layout in LAYOUTS.items() if find_obstacle(checkpoint, layout) is None]
        hint = " or ".join(fitting) or "safetensors or torch"
        raise ConfigError(f"{checkpoint.path} cannot be written as {name}: {reason}; give --layout {hint}")


def find_obstacle(checkpoint: Checkpoint, layout: Layout, unused: dict[str, Tensor] | None = None) -> str | None:
    """Why the network cannot be written in this layout; None if it can."""
    config, tensors = checkpoint.info.config, host_tensors(checkpoint)
    if config.arch != layout.arch:
        return f"it is a {config.architecture}, not --arch {layout.arch}"
    if config.norm_layer == "group":
        return "it has group norm, which the project does not have"
    if layout.arch == "wrn" or layout.normalizer or MU_SIGMA[0] in (unused or {}):
        return None
    expected = layout.default_normalizer(checkpoint.info.image_shape[0])
    same = all(torch.equal(tensors[name], expected[name]) for name in NORMALIZER)
    return None if same else "the project normalises images in another way"


def read_unused(checkpoint: Checkpoint, layout: Layout) -> dict[str, Tensor] | None:
    """What the file had beside the network, if the network was imported from this layout; else None. Raises DataError
    if that is damaged."""
    origin, run_dir = checkpoint.info.origin, find_run_dir(checkpoint.path)
    if origin is None or origin["layout"] != layout.name or run_dir is None:
        return None
    path = run_dir / UNUSED_FILE
    return read_tensors(path)[0] if path.is_file() else {}


# --- a folder for the Hugging Face Hub ---


def write_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """config.json, README.md, and the checkpoint itself as model.safetensors."""
    write_atomically(folder / MODEL_FILE, checkpoint.path.read_bytes(), read_back=True)
    write_atomically(folder / "config.json", (json.dumps(hub_config(checkpoint), indent=2) + "\n").encode())
    write_atomically(folder / "README.md", model_card(checkpoint, folder).encode())


def hub_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is needed to build the network, and what is known of its training."""
    info = checkpoint.info
    return {
        "library_name": "rjem",
        "rjem_version": __version__,
        "architecture": info.config.architecture,
        "image_shape": list(info.image_shape),
        "input_range": [-1, 1],
        "id2label": dict(enumerate(info.class_names)),
        "dataset": info.data_name,
        "origin": info.origin,
        "training": None if info.origin else info.to_dict()["config"],
    }


def model_card(checkpoint: Checkpoint, folder: Path) -> str:
    info = checkpoint.info
    channels, height, width = info.image_shape
    made = f"rjem trained it for {info.step} steps; config.json has all options."
    if info.origin:
        made = f"rjem imported it from `{info.origin['file']}` (layout {info.origin['layout']})."
    return f"""---
library_name: rjem
pipeline_tag: image-classification
tags: [energy-based-model, robustness, jem]
datasets: [{info.data_name}]
---
# {folder.name}
A {info.config.architecture} for images of {width}x{height} pixels with {pluralize(channels, "channel")}, in
{len(info.class_names)} classes of {info.data_name}. It is a classifier, and an energy-based model with
E(x) = -logsumexp of the logits.
{made}

```python
{loader_text(checkpoint, "huggingface", Path())}
```

```
rjem attack {MODEL_FILE} --eps 8/255
rjem generate {MODEL_FILE} -n 80
```
"""
