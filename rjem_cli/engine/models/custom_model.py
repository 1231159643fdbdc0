"""A network that is not rjem's: any torch.nn.Module that gives logits, by the name of what makes it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rjem_cli.config import NetworkOptions, TrainConfig
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.models.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from rjem_cli.errors import AbsentError, ConfigError, DataError, is_out_of_memory

PROBES = 4  # images that tell one network from another


class Isolated(nn.Module):
    """A network that gets images of its own, which it may change, and whose prints do not get among our data."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                logits_BK: Tensor = self.network(x_BCHW.clone())
            except StopIteration as error:  # it would end whatever loop the pass is in, without a word
                raise RuntimeError("the network raised StopIteration") from error
        return logits_BK

    def __deepcopy__(self, memo: object) -> Isolated:
        """Frozen as it is: nobody else has it, and a user's network need not be one that can be copied."""
        return self


@dataclass(frozen=True)
class CustomModel(Checkpoint):
    """`path` is its name. It is known by that, its weights, and what it makes of some fixed images: its code may change
    while its weights do not."""

    is_custom = True

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256(str(self.path).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            digest.update(json.dumps([name, str(plain.dtype), list(plain.shape)]).encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        x = 2 * torch.rand(PROBES, *self.info.image_shape, generator=torch.Generator().manual_seed(0)) - 1
        device = next((tensor.device for tensor in self.model.state_dict().values()), x.device)
        with torch.no_grad():
            logits = self.model(x.to(device)).double().cpu()
        digest.update(" ".join(f"{value:.3g}" for value in logits.flatten().tolist()).encode())  # not the last bits
        return digest.hexdigest()


def load_network(options: NetworkOptions, path: Path | None, device: torch.device) -> Checkpoint:
    """The network of a checkpoint, or of --model. Raises as `load_checkpoint` and `load_custom_model` do."""
    if options.model is None:
        assert path is not None
        return load_checkpoint(path, device)
    return load_custom_model(options.model, options, device)


def load_custom_model(name: str, options: NetworkOptions, device: torch.device) -> CustomModel:
    """What `module:factory` makes, with classes and image size of the data set that was named. Raises ConfigError or
    AbsentError for a name that means nothing, DataError for what is no such network."""
    config = TrainConfig(dataset=options.dataset or TrainConfig.dataset, data=options.data)
    model = Isolated(made_by(name)).to(device).eval()
    part, images = load_part(config, "train")
    name_of_data, own = part.partition(":")[0], config.data is not None
    info = CheckpointInfo(config, images.class_names, images.image_shape, name_of_data, images.digest(), own, step=0)
    check_logits(name, model, info, device)
    network = CustomModel(Path(name), model, info)
    network.sha256()  # now: freezing replaces BatchNorm in place
    return network


def made_by(name: str) -> nn.Module:
    """Modules of the working folder come first, as with `python -m`."""
    module_name, colon, factory_name = name.partition(":")
    if not (module_name and colon and factory_name):
        raise ConfigError(f"--model {name!r}: give module:factory, such as my_models:resnet for my_models.py")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            factory = found_factory(name, module_name, factory_name)
            made = factory()  # may import more from this folder
    except SystemExit as error:
        raise DataError(f"--model {name} ended Python with exit code {error.code}; take that out of it") from None
    finally:
        sys.path.remove(here)
    if not isinstance(made, nn.Module):
        raise DataError(f"--model {name} gives {type(made).__name__}, no torch.nn.Module")
    return made


def found_factory(name: str, module_name: str, factory_name: str) -> Callable[[], Any]:
    """An error inside of the user's module stays as it is, with its traceback."""
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(
            f"--model {name!r}: {module_name} is no module's name; write it as in an import, a.b for a/b.py"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise AbsentError(f"--model {name}: {error}; is it in this folder, or installed?") from None
    if not hasattr(module, factory_name):
        raise AbsentError(f"--model {name}: {module_name} has no {factory_name}")
    factory: Any = getattr(module, factory_name)
    try:
        inspect.signature(factory).bind()
    except TypeError:  # no function, or one that needs arguments
        raise ConfigError(f"--model {name} is no function without arguments; give one that makes the network") from None
    except ValueError:  # built in, without a signature
        pass
    return factory  # type: ignore[no-any-return]


def check_logits(name: str, model: nn.Module, info: CheckpointInfo, device: torch.device) -> None:
    """Raises DataError unless images in [-1, 1] give finite logits, one a class, that depend on the images."""
    x = torch.zeros(2, *info.image_shape, device=device, requires_grad=True)
    expected = (2, len(info.class_names))
    try:
        logits = model(x)
    except Exception as error:  # whatever its author's code raises for images that it was not made for
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"--model {name} does not take images {info.image_shape} of {info.data_name} ({reason})"
        ) from None
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise DataError(
            f"--model {name} gives {got} for 2 images, not {expected}: {info.data_name} has {expected[1]} classes"
        )
    if not logits.isfinite().all():
        raise DataError(f"--model {name} gives logits that are not finite")
    if not logits.requires_grad:
        raise DataError(f"--model {name} gives logits without a gradient; no_grad or detach must not be in its forward")
