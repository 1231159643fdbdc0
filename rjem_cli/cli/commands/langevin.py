"""`rjem langevin`: run chains and look at them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rjem_cli import paths
from rjem_cli.cli.formatting import pluralize
from rjem_cli.cli.options import CheckpointArgument, CommandCall, with_options
from rjem_cli.cli.sampling_output import (
    describe_checkpoint,
    describe_classes,
    describe_plan,
    show_chains,
    warn_about_noise,
)
from rjem_cli.config import STREAM, LangevinConfig
from rjem_cli.errors import ConfigError, RjemError

if TYPE_CHECKING:
    from rjem_cli.engine.sampling.chains import Chains

SHOWN_INVALID = 10


@with_options(LangevinConfig)
def langevin(call: CommandCall[LangevinConfig], checkpoint: CheckpointArgument = None) -> None:
    """Run Langevin chains and show them: energies of every step, a film strip, a GIF.

    Examples:

      rjem langevin --class 3 --sgld-steps 100 -n 8

      rjem langevin my-run --init noise --class none --noise-std 0.01

      rjem langevin my-run --init photo.png --class cat --no-clamp
    """
    console, config = call.console, call.resolve()
    if config.output == STREAM:
        raise ConfigError("-o -: chains are several files; give a folder")
    path = call.find_network(config, checkpoint)

    from rjem_cli.engine.memory import estimated_bytes
    from rjem_cli.engine.sampling.chain_report import chains_folder, write_chains
    from rjem_cli.engine.sampling.chains import run_chains
    from rjem_cli.engine.sampling.generate import SampleSetup
    from rjem_cli.engine.sampling.request import describe_request

    setup = SampleSetup.load(config, path, console.warn)
    request, runtime = setup.request, setup.runtime
    classes = describe_classes(request)
    console.log(describe_checkpoint(setup.checkpoint))
    console.log(f"device: {runtime.describe()}")
    console.log(f"{pluralize(config.count, 'chain')} of {classes} to {config.output}, seed {config.seed}")
    console.log(describe_plan(request.plan, config.init) + ("" if config.clamp else ", not clamped"))
    if warning := warn_about_noise(request.plan):
        console.warn(warning)
    if call.dry_run:
        block = replace(request, block_size=min(request.block_size, config.count), seed=0)
        seconds = call.elapsed() + replace(setup, request=block).estimate_seconds()
        console.estimate(seconds, estimated_bytes(runtime.device), ", and a few seconds for figures")
        return
    job, folder = setup.load_start(), paths.expand(config.output)
    extra = {"clamp": config.clamp, "record": config.record}
    with chains_folder(folder, {**job.meta, **extra}, config.overwrite), console.progress_bar() as bar:
        chains = run_chains(
            job,
            record=config.record,
            clamp=config.clamp,
            log=console.warn,
            on_progress=lambda done, total: bar.update("chain steps", done, total),
        )
        request = replace(job.request, block_size=chains.block_size)
        meta = describe_request(request, setup.checkpoint, config.init, job.start.sha256, runtime)
        document = write_chains(folder, chains, request, {**meta, **extra})
    if call.as_json:
        console.document(document)
    else:
        show_chains(document["chains"], console)
        console.log(f"see {folder / 'film.png'}, {folder / 'energies.png'} and {folder / 'chains.gif'}")
        console.result(str(folder.absolute()))
    check_finite_chains(chains)


def check_finite_chains(chains: Chains) -> None:
    """Raises RjemError for chains that are not finite."""
    from rjem_cli.engine.sampling.generate import NOT_FINITE_HINT

    if chains.invalid:
        names = ", ".join(f"{chain} (step {chains.invalid_at[chain]})" for chain in chains.invalid[:SHOWN_INVALID])
        more = f" and {len(chains.invalid) - SHOWN_INVALID} more" if len(chains.invalid) > SHOWN_INVALID else ""
        raise RjemError(f"chains that are not finite: {names}{more}; {NOT_FINITE_HINT}")
