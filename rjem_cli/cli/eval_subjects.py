"""What `rjem eval` scores: samples or a checkpoint."""

from pathlib import Path

from rjem_cli import paths
from rjem_cli.cli.options import CommandCall
from rjem_cli.config.scoring import CheckpointScoreOptions, EvalConfig, SampleScoreOptions
from rjem_cli.errors import ConfigError
from rjem_cli.files import check_output_file

# The options that --save-stats uses
STATISTICS_OPTIONS = ("save_stats", "features", "num", "allow_few", "image_size", "device", "batch_size")


def resolve_subjects(call: CommandCall[EvalConfig], subjects: list[str]) -> tuple[EvalConfig, list[str], Path | None]:
    """(config, locations of samples, checkpoint): samples or a checkpoint, or with --model neither. Raises ConfigError
    or AbsentError."""
    config = call.resolve()
    if config.save_stats:
        check_statistics_call(call, config, subjects)
    if config.model is not None:
        call.reject(SampleScoreOptions, f"applies to samples only, but {config.model} is a network")
        return config, [], call.find_network(config, subjects[0] if subjects else None)
    if not subjects:
        raise ConfigError("nothing to score; give samples, a checkpoint or a run (see --help)")
    checkpoints = {subject: paths.find_checkpoint_or_images(subject) for subject in subjects}
    if len(checkpoints) < len(subjects):
        raise ConfigError(f"{max(subjects, key=subjects.count)} is given twice; give each part once")
    named = [subject for subject, path in checkpoints.items() if path]
    if named and len(subjects) > 1:
        raise ConfigError(f"{named[0]} is a checkpoint; give one checkpoint, or parts of one set (see rjem compare)")
    if named:
        call.reject(SampleScoreOptions, f"applies to samples only, but {subjects[0]} is a checkpoint")
        return config, [], checkpoints[subjects[0]]
    reason = f"applies to checkpoints only, but {subjects[0]} holds samples"
    call.reject(CheckpointScoreOptions, reason, allowed=("image_size",))
    return config, subjects, None


def check_statistics_call(call: CommandCall[EvalConfig], config: EvalConfig, subjects: list[str]) -> None:
    """Raises ConfigError for a network, for an option that --save-stats does not use, or for a name that --reference
    would not read."""
    networks = [config.model] if config.model else filter(paths.find_checkpoint_or_images, subjects)
    if network := next(iter(networks), None):
        raise ConfigError(f"--save-stats applies to images only, but {network} is a network")
    call.reject(EvalConfig, "does not apply to --save-stats", allowed=STATISTICS_OPTIONS)
    path = paths.expand(str(config.save_stats))
    if path.suffix != ".npz":
        raise ConfigError(f"--save-stats {path}: give a name that ends in .npz")
    check_output_file("--save-stats", path)
