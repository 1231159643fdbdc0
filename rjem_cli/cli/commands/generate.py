"""`rjem generate`: samples from a checkpoint, in the three modes of the paper."""

import shlex
import time
from dataclasses import replace
from pathlib import Path

from rjem_cli.cli.options import CheckpointArgument, CommandCall, with_options
from rjem_cli.cli.sampling_output import describe_classes, describe_plan, log_setup
from rjem_cli.cli.stopping import interrupted, stop_on_signals
from rjem_cli.config.common import STREAM
from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.engine.distributed import is_distributed, rank_from_environment, world_size_from_environment
from rjem_cli.errors import ConfigError, pluralize
from rjem_cli.paths import expand


@with_options(GenerateConfig, several_processes=True)
def generate(call: CommandCall[GenerateConfig], checkpoint: CheckpointArgument = None) -> None:
    """Generate images of chosen classes. Unset options default to the checkpoint's own.

    Sample i depends on seed + i only. Run the same command again to resume a folder; a .npz or .tar starts again. With
    torchrun, each process writes one shard.

    Examples:

      rjem generate --class 3 -n 100

      rjem generate my-run --class cat,dog --mode combined -n 10000 -o samples/

      rjem generate my-run -n 50000 --shard 0/4 -o part0.npz

      rjem generate my-run -n 1000 -o - | tar t
    """
    console, asked = call.console, call.resolve()
    config = asked if not is_distributed() else shard_for_rank(asked, rank_from_environment())
    if config.output == STREAM:
        console.check_stream(call.as_json)
    path = call.find_network(config, checkpoint)

    from rjem_cli.engine.data.downloads import describe_download
    from rjem_cli.engine.distributed import select_gpu
    from rjem_cli.engine.memory import estimated_bytes
    from rjem_cli.engine.sampling.generate import SampleSetup
    from rjem_cli.engine.sampling.writers import check_output, write_samples

    check_output(config.output)
    if is_distributed():
        select_gpu()
    setup = SampleSetup.load(config, path, console.warn).fit_parallel()
    request = setup.request
    total = request.stop - request.first
    log_setup(
        setup,
        console,
        f"{pluralize(total, 'sample')} of {describe_classes(request)} to {config.output}, seed {config.seed}",
        f"mode {config.mode}: {describe_plan(request.plan, config.init)}",
        f"{request.gradient_steps} gradient steps in blocks of {request.block_size}",
    )
    if call.dry_run:
        console.estimate(call.elapsed() + setup.estimate_seconds(), estimated_bytes(setup.model.device))
        return
    job, start = setup.load_start(), time.perf_counter()
    console.log(job.start.read_summary)
    with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
        written = write_samples(job, config, console.binary, lambda done: bar.update("generating", done, total), stop)
    if written.done < total:
        raise interrupted(stop, f"stopped at {written.done} of {total} samples; {describe_rest(config.output)}")
    resumed = f", after {written.skipped} that were already there" if written.skipped else ""
    seconds = time.perf_counter() - start
    console.log(f"{pluralize(total - written.skipped, 'sample')} in {seconds:.1f} s{resumed}")
    if config.output != STREAM:
        download = describe_download(setup.model.info.data_name)
        note = f" ({download})" if download else ""
        console.log(f"next: rjem eval {' '.join(map(shlex.quote, list_outputs(asked)))}{note}")
    if call.as_json:
        console.document({"output": config.output, **job.meta})
    elif config.output != STREAM:
        console.result(str(expand(config.output).absolute()))


def shard_for_rank(config: GenerateConfig, rank: int) -> GenerateConfig:
    """The shard of a process that torchrun started, in an output of its own: samples-0of4, x-0of4.npz. Raises
    ConfigError."""
    if config.shard is not None or config.output == STREAM:
        flag = "-o -" if config.output == STREAM else "--shard"
        raise ConfigError(f"{flag} cannot be used with torchrun, where each process writes one shard to a file")
    output, world_size = Path(config.output), world_size_from_environment()
    if not output.name:
        raise ConfigError(f"-o {config.output}: with torchrun, give the name of a new folder or file")
    shard_output = output.with_name(f"{output.stem}-{rank}of{world_size}{output.suffix}")
    return replace(config, shard=f"{rank}/{world_size}", output=str(shard_output))


def list_outputs(config: GenerateConfig) -> list[str]:
    """What all processes write, folders with a slash."""
    ranks = range(world_size_from_environment()) if is_distributed() else ()
    outputs = [shard_for_rank(config, rank).output for rank in ranks] or [config.output]
    return [name if is_archive(name) else f"{name.rstrip('/')}/" for name in outputs]


def describe_rest(output: str) -> str:
    """What remains of an interrupted call, and what to do."""
    if output == STREAM:
        return "the stream is incomplete"
    if is_archive(output):
        return f"{output} was not written (a folder can be resumed)"
    return "run the same command again to resume"


def is_archive(output: str) -> bool:
    return Path(output).suffix.lower() in (".npz", ".tar")
