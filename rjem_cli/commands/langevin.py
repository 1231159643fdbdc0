"""`rjem langevin`: run chains and look at them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rjem_cli import paths
from rjem_cli.config import STREAM, LangevinConfig
from rjem_cli.errors import ConfigError, RjemError
from rjem_cli.interface.chains_view import (
    describe_checkpoint,
    describe_classes,
    describe_plan,
    show_chains,
    told_noise,
)
from rjem_cli.interface.console import counted
from rjem_cli.interface.options import Call, CheckpointArgument, with_knobs


@with_knobs(LangevinConfig)
def langevin(call: Call[LangevinConfig], checkpoint: CheckpointArgument = None) -> None:
    """Run Langevin chains and show them: energies of every step, a film strip, a GIF.

    Examples:

      rjem langevin --class 3 --sgld-steps 100 -n 8

      rjem langevin my-run --init noise --class none --noise-std 0.01

      rjem langevin my-run --init photo.png --class cat --no-clamp
    """
    console, config = call.console, call.settle()
    if config.output == STREAM:
        raise ConfigError("-o -: chains are several files; give a folder")
    path = call.find_network(config, checkpoint)

    from rjem_cli.engine.model.own import load_network
    from rjem_cli.engine.report.chains import chains_folder, write_chains
    from rjem_cli.engine.room import Room
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.sampling.generate import SMALLER
    from rjem_cli.engine.sampling.job import fit_blocks, forecast
    from rjem_cli.engine.sampling.request import describe_request, settle_request
    from rjem_cli.engine.sampling.starts import settle_start
    from rjem_cli.engine.sampling.trajectories import Trajectories, run_chains
    from rjem_cli.engine.timing import foreseen_bytes

    runtime = start_runtime(config, reproducible=True)
    loaded = load_network(config, path, runtime.device)
    info = loaded.info
    request = settle_request(
        config, info.config, info.class_names, runtime.device.type, count=config.count, seed=config.seed
    )
    logits_of, shape = runtime.frozen(loaded.model), info.image_shape
    request = fit_blocks(logits_of, shape, request, config.block_size, runtime, console.warn)
    console.say(describe_checkpoint(loaded))
    console.say(f"device: {runtime.describe()}")
    console.say(
        f"{counted(config.count, 'chain')} of {describe_classes(request)} to {config.output}, seed {config.seed}"
    )
    console.say(describe_plan(request.plan, config.init) + ("" if config.clamp else ", not clamped"))
    if warning := told_noise(request.plan):
        console.warn(warning)
    if call.dry_run:
        at_once = replace(request, block_size=min(request.block_size, config.count), seed=0)
        seconds = call.seconds_so_far() + forecast(logits_of, shape, at_once, runtime)
        console.forecast(seconds, foreseen_bytes(runtime.device), ", and a few seconds for pictures")
        return
    request, start = settle_start(config, loaded, logits_of, request, runtime)
    folder = paths.expand(config.output)

    def described(size: int) -> dict[str, Any]:
        meta = describe_request(replace(request, block_size=size), loaded, config.init, start.sha256, runtime)
        return {**meta, "clamp": config.clamp, "record": config.record}

    with chains_folder(folder, described(request.block_size), config.overwrite), console.bar() as bar:

        def run(size: int) -> Trajectories:
            return run_chains(
                replace(request, block_size=size),
                start.sampler,
                logits_of,
                record=config.record,
                clamp=config.clamp,
                device=runtime.device,
                report=lambda done, total: bar.update("chain steps", done, total),
            )

        room = Room(request.block_size, console.warn)
        found = run(room.most) if config.block_size else room.at_once(run)  # a size that was asked for is not changed
        document = write_chains(folder, found, request, described(room.most))
    if call.as_json:
        console.document(document)
    else:
        show_chains(document["chains"], console)
        console.say(f"look at {folder / 'film.png'}, {folder / 'energies.png'} and {folder / 'chains.gif'}")
        console.result(str(folder.absolute()))
    if found.lost:
        names = ", ".join(f"{chain} (step {found.lost_at[chain]})" for chain in found.lost[:10])
        more = f" and {len(found.lost) - 10} more" if len(found.lost) > 10 else ""
        raise RjemError(f"chains that are not finite: {names}{more}; {SMALLER}")
