"""A network that rjem did not train: any torch.nn.Module that returns logits, given to --model as module:factory."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rjem_cli.config.common import NetworkOptions
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.models.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from rjem_cli.engine.models.tensor_file import digest
from rjem_cli.errors import AbsentError, ConfigError, DataError, is_out_of_memory, summarize

PROBES = 4  # images whose logits identify a network


class Isolated(nn.Module):
    """Runs a user's network on a copy of the images, which it may change, and sends its prints to stderr."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                logits_BK: Tensor = self.network(x_BCHW.clone())
            except StopIteration as error:  # it would silently end a caller's loop
                raise RuntimeError("the network raised StopIteration") from error
        return logits_BK


def load_network(options: NetworkOptions, path: Path | None, device: torch.device) -> Checkpoint:
    """The network of a checkpoint, or of --model. Raises as `load_checkpoint` and `load_custom_model` do."""
    if options.model is None:
        assert path is not None
        return load_checkpoint(path, device)
    return load_custom_model(options.model, options, device)


def load_custom_model(name: str, options: NetworkOptions, device: torch.device) -> Checkpoint:
    """Call `module:factory`. Classes and image size are those of the data set in `options`. Raises ConfigError for an
    invalid name, AbsentError for an unknown one, DataError for a factory or network that does not work."""
    config = TrainConfig(
        dataset=options.dataset or TrainConfig.dataset, data=options.data, image_size=options.image_size
    )
    model = Isolated(build_network(name)).to(device).eval()
    name_of_part, images, _ = load_part(config, "train")
    info = CheckpointInfo(
        config,
        images.class_names,
        images.image_shape,
        data_name=name_of_part.partition(":")[0],
        data_digest=images.digest(),
        user_images=config.data is not None,
    )
    check_logits(name, model, info, device)
    model.requires_grad_(False)
    sha256, notes = fingerprint(name, model, info, device), find_irregularities(model, info, device)
    return Checkpoint(Path(name), model, info, sha256, is_custom=True, notes=notes)


def build_network(name: str) -> nn.Module:
    """Modules of the working directory come first, as with `python -m`. Errors in the user's code keep their
    traceback."""
    module_name, _, factory_name = name.partition(":")
    if not (module_name and factory_name):
        raise ConfigError(f"--model {name!r}: give module:factory, such as my_models:resnet for my_models.py")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"--model {name!r}: write the module as in an import, such as a.b for a/b.py")
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            network = import_factory(name, module_name, factory_name)()  # may import more from the directory
    except SystemExit as error:
        raise DataError(f"--model {name} exited with code {error.code}; remove the exit from its code") from None
    finally:
        sys.path.remove(directory)
    if not isinstance(network, nn.Module):
        raise DataError(f"--model {name} returns {type(network).__name__}; it must return a torch.nn.Module")
    return network


def import_factory(name: str, module_name: str, factory_name: str) -> Callable[[], Any]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise AbsentError(f"--model {name}: {error}; install it, or run rjem in its directory") from None
    if not hasattr(module, factory_name):
        raise AbsentError(f"--model {name}: {module_name} has no {factory_name}")
    factory: Callable[[], Any] = getattr(module, factory_name)
    with contextlib.suppress(ValueError):  # a built-in without a signature
        try:
            inspect.signature(factory).bind()
        except TypeError:  # not a function, or one that needs arguments
            raise ConfigError(f"--model {name} is not a function that needs no arguments; give one") from None
    return factory


def check_logits(name: str, model: nn.Module, info: CheckpointInfo, device: torch.device) -> None:
    """Raises DataError unless images in [-1, 1] give finite logits (B, K) with a gradient to the images."""
    x = torch.zeros(2, *info.image_shape, device=device, requires_grad=True)
    expected, gradient = (2, len(info.class_names)), None
    try:
        logits = model(x)
        if isinstance(logits, Tensor) and logits.requires_grad:
            (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    except Exception as error:  # whatever the user's code raises
        if is_out_of_memory(error):
            raise
        reason = summarize(error)
        raise DataError(f"--model {name} fails on images {info.image_shape} of {info.data_name} ({reason})") from None
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        actual = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"--model {name} returns {actual} for 2 images, not {expected}: {info.data_name} has {expected[1]} classes"
        )
    if not logits.isfinite().all():
        raise DataError(f"--model {name} returns logits that are not finite")
    if gradient is None:
        raise DataError(
            f"--model {name} returns logits without a gradient to the images; use them in its forward, without no_grad "
            "or detach"
        )


def probe_images(info: CheckpointInfo, device: torch.device) -> Tensor:
    """A few fixed images of noise in [-1, 1]."""
    return (2 * torch.rand(PROBES, *info.image_shape, generator=torch.Generator().manual_seed(0)) - 1).to(device)


def find_irregularities(model: nn.Module, info: CheckpointInfo, device: torch.device) -> tuple[str, ...]:
    """What makes scores of this network unreliable: a random output, or one for an image that depends on the other
    images of its batch."""
    x = probe_images(info, device)
    with torch.no_grad():
        first, second = model(x), model(x)
        parts = torch.cat([model(part) for part in x.split(PROBES // 2)])
    tolerance = 1e-3 * first.abs().max()
    if (first - second).abs().max() > tolerance:
        return ("the network's output is random, so scores and the success of attacks depend on chance",)
    if (first - parts).abs().max() > tolerance:
        return ("the network's output for an image depends on its batch, so scores depend on --batch-size",)
    return ()


def fingerprint(name: str, model: nn.Module, info: CheckpointInfo, device: torch.device) -> str:
    """sha256 of the name, the tensors, and the logits of fixed images: code may change while weights do not."""
    with torch.no_grad():
        logits = model(probe_images(info, device)).flatten().tolist()
    tensors = dict(flatten_tensors("", model.state_dict()))
    return digest(tensors, {"name": name, "logits": [f"{value:.3g}" for value in logits]})  # without the last bits


def flatten_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Contiguous tensors on the host, by name. The state of a quantized network has tensors in tuples."""
    if isinstance(value, Tensor):
        value = value.detach().dequantize() if value.is_quantized else value.detach()
        yield name, (value if value.layout == torch.strided else value.to_dense()).cpu().contiguous()
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten_tensors(f"{name}.{key}", part)
