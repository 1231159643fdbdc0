"""`rjem export`: write a checkpoint for another project."""

from __future__ import annotations

from rjem_cli import paths
from rjem_cli.cli.options import CheckpointArgument, CommandCall, with_options
from rjem_cli.config.exchange import ExportConfig
from rjem_cli.errors import ConfigError


@with_options(ExportConfig)
def export(call: CommandCall[ExportConfig], checkpoint: CheckpointArgument = None) -> None:
    """Write a checkpoint as a file that another project's own code loads, and print the code that loads it.

    In the layout that it was imported from, a float32 network gets the tensors of its file back, bit for bit.

    Examples:

      rjem export my-run --layout jem -o CIFAR10_MODEL.pt

      rjem export my-run --layout safetensors

      rjem export my-run --layout huggingface -o my-model/
    """
    console, config = call.console, call.resolve()
    path = paths.find_checkpoint(checkpoint)

    import torch

    from rjem_cli.engine.exchange.exporter import SUFFIXES, check_layout, find_limits, loader_text, write_export
    from rjem_cli.engine.models.checkpoint import load_checkpoint

    run_dir = paths.find_run_dir(path)
    name = f"{run_dir.name if run_dir else path.stem}-{config.layout}{SUFFIXES.get(config.layout, '.pt')}"
    output = paths.expand(config.output or name)
    if output.exists() and not config.overwrite and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"-o {output} exists; add --overwrite, or give another name")
    network = load_checkpoint(path, torch.device("cpu"))
    if limits := find_limits(network, config.layout):
        console.note(limits)
    if call.dry_run:
        check_layout(network, config.layout)
        console.log(f"would write {output}")
        return
    write_export(network, config.layout, output)
    loader = loader_text(network, config.layout, output)
    if call.as_json:
        console.document(
            {"checkpoint": str(path), "layout": config.layout, "file": str(output.absolute()), "loader": loader}
        )
        return
    console.log(f"wrote {path} as {config.layout}; this loads it:\n\n{loader}\n")
    console.result(str(output.absolute()))
