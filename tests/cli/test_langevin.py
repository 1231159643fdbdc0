"""`rjem langevin`: the files of recorded chains, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rjem_cli.cli.formatting import sparkline
from rjem_cli.files import locked


def test_chains_are_written_as_data_pictures_and_a_table(rjem, trained, tmp_path):
    out = tmp_path / "chains"
    outcome = rjem("langevin", "-n", 5, "--class", "3,7", "--sgld-steps", 12, "--record", 5, "--seed", 9, "-o", out)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "chain\tclass\tE(x, y)\tfrom start to end\tstate" and len(lines) == 1 + 5 + 1
    assert lines[-1] == str(out)
    document = json.loads((out / "chains.json").read_text())
    assert [chain["seed"] for chain in document["chains"]] == [9, 10, 11, 12, 13]
    assert document["plan"]["sgld_steps"] == 12 and document["init"] == "prior"
    with (out / "energies.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 * 5
    for row in rows:
        chain = document["chains"][int(row["chain"])]
        assert float(row["joint_energy"]) == pytest.approx(chain["joint_energy"][int(row["step"])], abs=1e-4)
        assert float(row["energy"]) <= float(row["joint_energy"]) + 1e-4  # -logsumexp is below every -logit
    with Image.open(out / "chains.gif") as animation:
        assert animation.n_frames == 4  # after 0, 5, 10 and 12 steps
    for name in ("film.png", "energies.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 100


def test_the_chains_are_those_that_generate_runs(rjem, trained, tmp_path):
    flags = ("-n", 6, "--class", "1", "--sgld-steps", 5, "--noise-std", 0.05)
    assert rjem("langevin", *flags, "-o", tmp_path / "chains").code == 0
    assert rjem("generate", *flags, "-o", tmp_path / "samples").code == 0
    for index in range(6):
        pixels = [np.asarray(Image.open(tmp_path / name / f"{index:06d}.png"), int) for name in ("chains", "samples")]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1  # up to the last bits of another batch size


def test_unconditional_chains_and_other_starts(rjem, trained, tmp_path):
    first = tmp_path / "first"
    assert rjem("langevin", "-n", 3, "--init", "noise", "--class", "none", "--sgld-steps", 2, "-o", first).code == 0
    chains = json.loads((first / "chains.json").read_text())["chains"]
    assert all(chain["class"] == "none" and "joint_energy" not in chain for chain in chains)
    for init in ("data", "buffer", first / "000001.png"):
        outcome = rjem("langevin", "-n", 2, "--init", init, "--sgld-steps", 0, "-o", tmp_path / "next", "--overwrite")
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "next" / "000000.png").read_bytes() == (first / "000001.png").read_bytes()


def test_temperature_divides_the_energy(rjem, trained, tmp_path):
    """Where no gradient is clipped, half the temperature is twice the step."""
    for name, flags in (("cold", ("--temperature", 0.5)), ("long", ("--sgld-step-size", 0.004, "--inner-steps", 1))):
        base = () if name == "long" else ("--sgld-step-size", 0.002, "--inner-steps", 1)
        assert rjem("langevin", "-n", 2, "--sgld-steps", 3, *base, *flags, "-o", tmp_path / name).code == 0
    energies = [json.loads((tmp_path / name / "chains.json").read_text())["chains"] for name in ("cold", "long")]
    for cold, long in zip(*energies):
        assert cold["joint_energy"] == pytest.approx(long["joint_energy"], abs=1e-4)


def test_langevin_noise_is_that_of_the_step_and_there_is_no_clip(rjem, trained, tmp_path):
    flags = ("--langevin-noise", "--sgld-step-size", 0.01, "--inner-steps", 2, "--sgld-steps", 3, "-n", 2)
    outcome = rjem("langevin", *flags, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    plan = json.loads((tmp_path / "out/chains.json").read_text())["plan"]
    assert plan["sgld"]["noise_std"] == pytest.approx(0.2) and plan["sgld"]["grad_clip"] is None  # sqrt(2 * 0.02)
    both = rjem("langevin", *flags, "--noise-std", 1)
    assert both.code == 2 and "--langevin-noise sets the noise" in both.error_line()


def test_chains_that_leave_the_box_or_are_not_finite_are_reported_by_index(rjem, trained, tmp_path):
    free = rjem("langevin", "-n", 3, "--sgld-steps", 3, "--no-clamp", "--noise-std", 1, "-o", tmp_path / "free")
    assert free.code == 0 and "3 of 3 chains left the box [-1, 1]: 0, 1, 2" in free.err
    assert all(c["left_box_at"] == 1 for c in json.loads((tmp_path / "free/chains.json").read_text())["chains"])
    lost = rjem("langevin", "-n", 2, "--sgld-steps", 9, "--no-clamp", "--noise-std", 1e38, "-o", tmp_path / "lost")
    assert lost.code == 1 and "2 of 2 chains are not finite: 0 (step" in lost.error_line()
    document = json.loads((tmp_path / "lost/chains.json").read_text())  # every file is there, and JSON has no NaN
    assert document["chains"][1]["not_finite_from"] > 0 and None in document["chains"][1]["joint_energy"]
    assert (tmp_path / "lost/film.png").exists() and (tmp_path / "lost/energies.png").exists()


def test_a_folder_of_other_files_is_left_alone(rjem, trained, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    refused = rjem("langevin", "-n", 1, "-o", tmp_path / "own", "--overwrite")
    assert refused.code == 2 and "thesis.txt" in refused.error_line()
    assert rjem("langevin", "-n", 2, "--sgld-steps", 1, "-o", tmp_path / "out").code == 0
    assert "add --overwrite" in rjem("langevin", "-n", 2, "--sgld-steps", 1, "-o", tmp_path / "out").error_line()


def test_an_interrupted_call_starts_again_and_two_cannot_share_a_folder(rjem, trained, tmp_path):
    out = tmp_path / "out"
    flags = ("langevin", "-n", 2, "--sgld-steps", 1, "-o", out)
    assert rjem(*flags).code == 0
    document = json.loads((out / "chains.json").read_text())
    (out / "chains.json").write_text(json.dumps({**document, "complete": False}))  # as a kill leaves it
    (out / "film.png").unlink()
    assert rjem(*flags).code == 0 and (out / "film.png").exists()
    assert json.loads((out / "chains.json").read_text())["complete"] is True
    with locked(out / "chains.json", wait=False):
        assert "is in use by another process" in rjem(*flags, "--overwrite").error_line()


def test_the_chains_of_a_folder_can_be_refined(rjem, trained, tmp_path):
    assert rjem("langevin", "-n", 2, "--sgld-steps", 1, "-o", tmp_path / "a").code == 0
    outcome = rjem("langevin", "-n", 2, "--init", tmp_path / "a", "--sgld-steps", 0, "-o", tmp_path / "b")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "a/000001.png").read_bytes() == (tmp_path / "b/000001.png").read_bytes()


def test_invalid_outputs_starts_and_options_are_refused(rjem, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    for flags, code, message in (
        (("-o", "-"), 2, "give a folder"),
        (("--init", tmp_path / "pipe.tar"), 1, "is neither a folder nor a file"),
        (("--sgld-step-size", "1e308", "--inner-steps", 1000), 2, "is not finite"),
        (("--class", "9" * 5000), 2, "is unknown to this checkpoint"),
        (("--block-size", 10**7), 2, "--block-size 10000000 is too large"),
    ):
        outcome = rjem("langevin", "-n", 1, *flags)
        assert outcome.code == code and message in outcome.error_line(), outcome.err


@pytest.mark.slow
def test_a_pipe_of_another_encoding_gets_every_line(trained, tmp_path):
    command = [sys.executable, "-m", "rjem_cli", "langevin", "-n", "1", "--sgld-steps", "2", "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=120)
    assert done.returncode == 0 and done.stdout.decode("ascii").splitlines()[-1] == str(tmp_path / "out")


def test_sparklines():
    assert sparkline([0.0, 1.0]) == "▁█" and sparkline([3.0]) == "▁" and sparkline([None, 1.0, 1.0]) == " ▁▁"
    assert len(sparkline([math.sin(i) for i in range(301)])) == 32
