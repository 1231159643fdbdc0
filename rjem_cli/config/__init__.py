"""Every knob of rjem, declared once: its meaning, unit, default and range."""

from __future__ import annotations

from rjem_cli.config.chains import ChainOptions, GenerateConfig, LangevinConfig
from rjem_cli.config.common import (
    DATASETS,
    DEFAULT_PRESETS,
    FEATURES,
    LARGEST_BATCH,
    LARGEST_LINF,
    METRICS,
    OWN_IMAGES_PRESET,
    SAMPLE_MODES,
    STARTS,
    STREAM,
    SYNTHETIC_SETS,
    DeviceOptions,
    NetworkOptions,
    RuntimeOptions,
)
from rjem_cli.config.compare import FORMATS, SCALES, SUFFIXES, CompareConfig
from rjem_cli.config.scores import AttackConfig, CheckpointScoreOptions, EvalConfig, SampleScoreOptions, TestOptions
from rjem_cli.config.training import (
    AttackTrainingOptions,
    DataOptions,
    EnergyOptions,
    GuardOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    SamplingOptions,
    TrainConfig,
)

__all__ = [
    "DATASETS",
    "DEFAULT_PRESETS",
    "FEATURES",
    "FORMATS",
    "LARGEST_BATCH",
    "LARGEST_LINF",
    "METRICS",
    "OWN_IMAGES_PRESET",
    "SAMPLE_MODES",
    "SCALES",
    "STARTS",
    "STREAM",
    "SUFFIXES",
    "SYNTHETIC_SETS",
    "AttackConfig",
    "AttackTrainingOptions",
    "ChainOptions",
    "CheckpointScoreOptions",
    "CompareConfig",
    "DataOptions",
    "DeviceOptions",
    "EnergyOptions",
    "EvalConfig",
    "GenerateConfig",
    "GuardOptions",
    "LangevinConfig",
    "ModelOptions",
    "NetworkOptions",
    "OptimizerOptions",
    "RunOptions",
    "RuntimeOptions",
    "SampleScoreOptions",
    "SamplingOptions",
    "TestOptions",
    "TrainConfig",
]
