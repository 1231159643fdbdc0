"""`rjem langevin`: run chains and record them."""

from dataclasses import replace
from typing import Any

from rjem_cli import paths
from rjem_cli.cli.options import CheckpointArgument, CommandCall, with_options
from rjem_cli.cli.sampling_output import MAX_INDICES, describe_classes, describe_plan, log_setup, show_chains
from rjem_cli.config.common import STREAM
from rjem_cli.config.sampling import LangevinConfig
from rjem_cli.errors import ConfigError, RjemError, pluralize


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
    from rjem_cli.engine.sampling.chains import open_chains_folder, run_chains, write_chains
    from rjem_cli.engine.sampling.generate import SampleSetup
    from rjem_cli.engine.sampling.request import describe_request

    setup = SampleSetup.load(config, path, console.warn)
    request = setup.request
    log_setup(
        setup,
        console,
        f"{pluralize(config.count, 'chain')} of {describe_classes(request)} to {config.output}, seed {config.seed}",
        describe_plan(request.plan, config.init) + ("" if config.clamp else ", not clamped"),
    )
    if call.dry_run:
        block = replace(request, block_size=min(request.block_size, config.count), seed=0)
        seconds = call.elapsed() + replace(setup, request=block).estimate_seconds()
        console.estimate(seconds, estimated_bytes(setup.model.device), ", and a few seconds for figures")
        return
    job, folder = setup.load_start(), paths.expand(config.output)
    console.log(job.start.read_summary)
    options = {"clamp": config.clamp, "record": config.record}
    with open_chains_folder(folder, {**job.meta, **options}, config.overwrite), console.progress_bar() as bar:
        chains = run_chains(
            job,
            record=config.record,
            clamp=config.clamp,
            log=console.warn,
            on_progress=lambda done, total: bar.update("chain steps", done, total),
        )
        meta = describe_request(chains.request, setup.model, config.init, job.start.sha256)
        document = write_chains(folder, chains, {**meta, **options})
    if call.as_json:
        console.document(document)
    else:
        show_chains(document["chains"], console)
        console.log(f"see {folder / 'film.png'}, {folder / 'energies.png'} and {folder / 'chains.gif'}")
        console.result(str(folder.absolute()))
    check_finite(document["chains"])


def check_finite(chains: list[dict[str, Any]]) -> None:
    """Raises RjemError with the chains that are not finite."""
    from rjem_cli.engine.sampling.generate import NOT_FINITE_HINT

    steps = [(chain["chain"], chain["not_finite_from"]) for chain in chains if chain["not_finite_from"] is not None]
    if steps:
        names = ", ".join(f"{chain} (step {step})" for chain, step in steps[:MAX_INDICES])
        more = f" and {len(steps) - MAX_INDICES} more" if len(steps) > MAX_INDICES else ""
        raise RjemError(f"{len(steps)} of {len(chains)} chains are not finite: {names}{more}; {NOT_FINITE_HINT}")
