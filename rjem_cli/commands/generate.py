"""`rjem generate`: samples from a checkpoint, in the three modes of the paper."""

from __future__ import annotations

import itertools
import time
from typing import Any

from rjem_cli import paths
from rjem_cli.config import GenerateConfig
from rjem_cli.errors import InterruptedRunError
from rjem_cli.interface.chains_view import describe_checkpoint, describe_classes, describe_plan
from rjem_cli.interface.console import Console
from rjem_cli.interface.options import (
    CheckpointArgument,
    ConfigFile,
    DryRun,
    EpsSpace,
    Json,
    PrintConfig,
    Quiet,
    with_knobs,
)
from rjem_cli.interface.settings import settle_command
from rjem_cli.interface.signals import stop_on_signals

STREAM = "-"


@with_knobs(GenerateConfig)
def generate(
    flags: dict[str, Any],
    checkpoint: CheckpointArgument = None,
    config_file: ConfigFile = None,
    eps_space: EpsSpace = "model",
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate images of chosen classes. What is not given is as the checkpoint was trained to sample.

    The same call goes on where it was interrupted. Sample i depends on seed + i only.

    Examples:

      rjem generate --class 3 -n 100

      rjem generate my-run --class cat,dog --mode combined -n 10000 -o samples/

      rjem generate my-run -n 50000 --shard 0/4 -o part0.npz

      rjem generate my-run -n 1000 -o - | tar t
    """
    console = Console(quiet, as_json)
    settled = settle_command(GenerateConfig, flags, config_file, eps_space, base=None)
    config = settled.config
    if print_config:
        console.result(settled.to_yaml().rstrip())
        return
    if config.output == STREAM:
        console.check_stream(as_json)
    path = paths.find_checkpoint(checkpoint)

    from rjem_cli.engine.chains import sampler_of
    from rjem_cli.engine.model.checkpoint import load_checkpoint
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.sampling.generate import generate as sample
    from rjem_cli.engine.sampling.request import describe_request, settle_request
    from rjem_cli.engine.sampling.starts import chain_of, start_pixels
    from rjem_cli.engine.sampling.writer import check_output, open_writer, write_beside

    check_output(config.output)
    runtime = start_runtime(config.device, config.precision, reproducible=True)
    loaded = load_checkpoint(path, runtime.device)
    request = settle_request(config, loaded.info.config, loaded.info.class_names, runtime.device.type)
    total = request.last - request.first
    console.say(describe_checkpoint(path, loaded.info))
    console.say(f"device: {runtime.describe()}")
    console.say(f"{total} samples of {describe_classes(request)} to {config.output}, seed {config.seed}")
    steps = request.plan.gradient_steps * total
    console.say(f"{describe_plan(request.plan, config.init)}; {steps} gradient steps in all")
    if dry_run:
        return
    request, start, logits_of = chain_of(config, loaded, request, runtime)
    sampler = sampler_of(request.plan, start, logits_of)
    meta = describe_request(request, loaded, config.init, runtime)
    started = time.perf_counter()
    with stop_on_signals(console.say) as stop:
        writer = open_writer(
            config.output,
            request,
            meta,
            config.overwrite,
            console.binary,
            lambda count: start_pixels(start, request, count, runtime.device),
        )
        try:
            skip = writer.done
            if skip:
                console.say(f"goes on behind {skip} samples that are there")
            batches = sample(sampler, request, skip=skip, batch_size=config.batch_size, device=runtime.device)
            with console.bar() as bar:
                for done in write_beside(itertools.takewhile(lambda _: not stop(), batches), writer):
                    bar.update("generating", skip + done, total)
            if stop() and writer.done < total:
                assert stop.signal_number is not None
                where = "the stream breaks off here" if config.output == STREAM else "the same command goes on"
                raise InterruptedRunError(f"stopped at {writer.done} of {total} samples; {where}", stop.signal_number)
            writer.finish()
        finally:
            writer.close()
    console.say(f"{total - skip} samples in {time.perf_counter() - started:.1f} s")
    if as_json:
        console.document({"output": config.output, **meta})
    elif config.output != STREAM:
        console.result(str(paths.expand(config.output).absolute()))
