import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rjem_cli.__main__ import main
from rjem_cli.cli.stopping import Deadline
from rjem_cli.paths import QUARANTINE_SUFFIX, checkpoints_in, find_resumable, new_run_dir, parse_step
from tests.conftest import TINY_FLAGS


def test_the_last_line_of_stdout_is_the_checkpoint_and_the_table_is_tsv(rjem, own_home):
    outcome = rjem("train", "--run", "one", *TINY_FLAGS)
    assert outcome.code == 0
    checkpoint = Path(outcome.out.splitlines()[-1])
    assert checkpoint == own_home / "runs/one/checkpoints/step-00000003.safetensors" and checkpoint.is_file()
    rows = [line.split("\t") for line in outcome.out.splitlines()[:-1]]
    assert rows[0] == ["metric", "value", "95% interval", "measured on"]
    assert {row[0] for row in rows} >= {"accuracy", "robust accuracy", "E(x) of data"}
    assert all(len(row) == 4 for row in rows)
    assert "eps 0.1 = 12.75/255" in outcome.err


def test_the_quickstart_in_its_smallest_form(rjem, tmp_path):
    """README's first command, with few steps: train on shifted digits, then generate in each mode."""
    assert rjem("train", "--preset", "quickstart", "--steps", 12, "--eval-limit", 64).code == 0
    for mode in ("energy", "attack", "combined"):
        outcome = rjem("generate", "--class", "3", "-n", 4, "--mode", mode, "-o", tmp_path / mode)
        assert outcome.code == 0 and len(list((tmp_path / mode).glob("0*.png"))) == 4


def test_quiet_prints_the_checkpoint_alone(rjem):
    outcome = rjem("train", "--run", "one", "-q", *TINY_FLAGS)
    assert outcome.err == "" and len(outcome.out.splitlines()) == 1 and outcome.out.endswith(".safetensors\n")


def test_epochs_given_set_the_presets_steps_aside(rjem):
    lines = rjem("train", "--epochs", 2, "--print-config").out.splitlines()
    assert f"{'steps: null':<32} # replaced by --epochs" in lines and any(
        line.startswith("epochs: 2") for line in lines
    )
    both = rjem("train", "--epochs", 2, "--steps", 5, "--print-config")
    assert both.code == 2 and "--epochs" in both.error_line() and "--steps" in both.error_line()


@pytest.mark.parametrize(
    ("arguments", "variables", "preset", "values"),
    [
        ([], {}, "quickstart", {"dataset": "shifted-digits", "width": 1, "flip": False, "steps": 1000}),
        (["--adv-eps", 0.1, "--pgd-steps", 15], {}, "quickstart", {"dataset": "shifted-digits", "pgd_steps": 15}),
        (["--dataset", "cifar10"], {}, "cifar10-small", {"dataset": "cifar10", "width": 4, "crop_pad": 4}),
        (["--dataset=svhn"], {}, "svhn-small", {"dataset": "svhn", "width": 4, "flip": False}),
        (["--data", "photos/"], {}, "cifar10-small", {"width": 4, "flip": True, "steps": 20000}),
        ([], {"RJEM_DATASET": "cifar100"}, "cifar10-small", {"dataset": "cifar100", "depth": 16}),
        ([], {"RJEM_PRESET": "rjem"}, "rjem", {"dataset": "cifar10", "depth": 28}),
        (["--dataset", "digits"], {"RJEM_DATA": "photos/"}, "quickstart", {"dataset": "digits", "data": None}),
        (["--dataset", "cifar10", "--preset", "quickstart"], {}, "quickstart", {"dataset": "cifar10", "width": 1}),
        (
            ["--preset", "quickstart", "--preset", "rjem"],
            {},
            "rjem",
            {"dataset": "cifar10", "width": 10, "epochs": 150},
        ),
        (["--epochs", 2, "--batch-size", 32], {}, "quickstart", {"steps": None, "epochs": 2, "batch_size": 32}),
        (["-c", "c.yaml"], {}, "cifar10-small", {"dataset": "cifar10", "width": 4}),
        (["--adv-eps", 0.1, "--eps-space", "pixel"], {}, "quickstart", {"adv_eps": 0.2}),
    ],
)
def test_help_and_print_config_show_the_preset_of_the_data(
    rjem, monkeypatch, tmp_path, arguments, variables, preset, values
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("dataset: cifar10\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    printed = rjem("train", *arguments, "--print-config").out
    config = yaml.safe_load(printed)
    assert config["preset"] == preset and values.items() <= config.items()
    shown = " ".join(rjem("train", *arguments, "--help").out.split()).partition(" Options: ")[2]
    for name in ("preset", "width", "norm-layer", "lr", "batch-size", "buffer-size", "adv-eps"):
        found = re.search(rf"--{name} \S+ .*?\[([^]]*)\] (?:-|[A-Z])", shown)
        assert found and yaml.safe_load(found[1]) == config[name.replace("-", "_")], name
    assert bool(re.search(r"instead of epochs\. \[\d+\]", shown)) == (config["steps"] is not None)


def test_the_same_command_line_starts_a_run_and_resumes_it(rjem, own_home):
    """As a cluster gives it again after a preemption; with the run's own preset."""
    line = ("train", "--run", "job", "--resume", "auto", "--preset", "quickstart", *TINY_FLAGS)
    started = rjem(*line, "--max-time", "1s", "--json")
    assert started.code == 0 and "run job does not exist yet; starting it" in started.err
    finished = rjem(*line, "--json")
    assert finished.code == 0 and "resuming at step 0" in finished.err and json.loads(finished.out)["step"] == 3
    assert "already finished" not in finished.err
    again = rjem(*line, "--json")
    assert again.code == 0 and "training is already finished; evaluating again" in again.err
    assert json.loads(again.out)["checkpoint"] == json.loads(finished.out)["checkpoint"]
    assert [path.name for path in (own_home / "runs").iterdir() if path.is_dir()] == ["job"]


def test_another_preset_on_resume_is_refused_with_both_names(rjem, trained):
    for preset, code in (("rjem", 2), ("svhn-small", 2), ("quickstart", 0)):
        outcome = rjem("train", "--resume", "tiny", "--preset", preset, "--dry-run")
        assert outcome.code == code
        if code:
            message = f"--preset {preset!r}: run tiny was started with --preset quickstart; leave it out"
            assert message in outcome.error_line()
    assert rjem("train", "--resume", "tiny", "--preset", "rjem", "--print-config").code == 2
    (changed := yaml.safe_load(rjem("train", "--resume", "tiny", "--preset", "quickstart", "--print-config").out))
    assert (changed["steps"], changed["batch_size"]) == (3, 16)  # the run's own, though the preset has others


def test_a_flipped_bit_in_a_description_is_found_before_its_settings_are_used(rjem, own_home, trained):
    path = Path(trained["checkpoint"])
    content = path.read_bytes()
    old, new = b'\\"lr\\": 0.002', b'\\"lr\\": 0.009'
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    outcome = rjem("train", "--resume", "tiny", "--steps", 4)
    assert outcome.code == 0 and f"skipped: {path} is damaged" in outcome.err and "resuming at step 0" in outcome.err
    assert yaml.safe_load((own_home / "runs/tiny/config.yaml").read_text())["lr"] == 0.002


def test_damaged_weights_are_found_and_an_earlier_checkpoint_is_taken(rjem, trained):
    path = Path(trained["checkpoint"])
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    outcome = rjem("train", "--resume", "tiny", "--steps", 4)
    assert outcome.code == 0 and f"warning: skipped: {path} is damaged" in outcome.err
    assert "resuming at step 0" in outcome.err


def test_a_config_on_a_pipe_is_read_once(rjem, trained):
    """As bash gives it for -c <(...)."""
    reading, writing = os.pipe()
    os.write(writing, b"steps: 4\nlr: 0.0625\n")
    os.close(writing)
    outcome = rjem("train", "--resume", "tiny", "-c", f"/dev/fd/{reading}", "--print-config")
    os.close(reading)
    assert outcome.code == 0 and {"steps": 4, "lr": 0.0625}.items() <= yaml.safe_load(outcome.out).items()


def test_quiet_keeps_warnings(rjem, monkeypatch):
    monkeypatch.setenv("RJEM_ADV_EP", "0.2")
    outcome = rjem("train", "--run", "one", "-q", *TINY_FLAGS)
    assert outcome.err == "warning: no command reads RJEM_ADV_EP; did you mean RJEM_ADV_EPS?\n"


def write_images(folder: Path) -> None:
    """40 images of the classes dark and light."""
    for index in range(40):
        path = folder / ("dark", "light")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 100, (7, 10, 3)) + 150 * (index % 2)
        Image.fromarray(noise.astype(np.uint8)).save(path)


def test_own_images_train(rjem, own_home, tmp_path):
    write_images(tmp_path / "images")
    outcome = rjem("train", "--run", "own", "--data", tmp_path / "images", *TINY_FLAGS[2:])
    assert outcome.code == 0, outcome.err
    assert "data: images, 2 classes, 28 + 4 + 8 images" in outcome.err
    samples = tmp_path / "out"
    assert rjem("generate", "--class", "light", "-n", 3, "-o", samples).code == 0
    with Image.open(samples / "000000.png") as image:
        assert image.size == (10, 7) and image.mode == "RGB"
    checkpoint = Path(outcome.out.splitlines()[-1])
    assert str(tmp_path).encode() not in checkpoint.read_bytes()  # who shares one tells of no folder
    attack = ("attack", "own", "--eps", "0.1", "--steps", 1)
    assert rjem(*attack).code == 0  # its images are where the run says
    (own_home / "runs/own/config.yaml").unlink()
    unknown = rjem(*attack)
    assert unknown.code == 3 and "--data" in unknown.error_line()
    os.mkfifo(own_home / "runs/own/config.yaml")  # nobody will ever write into it
    assert rjem(*attack).code == 3
    (own_home / "runs/own/config.yaml").unlink()
    assert rjem(*attack, "--data", tmp_path / "images").code == 0
    lost = rjem("train", "--resume", "own", "--steps", 4)
    assert lost.code == 3 and "says where images is; give it with --data" in lost.error_line()
    assert rjem("train", "--resume", "own", "--steps", 4, "--data", tmp_path / "images").code == 0
    assert rjem("train", "--resume", "own", "--steps", 5).code == 0


def test_print_config_can_be_fed_back(rjem, tmp_path, monkeypatch):
    monkeypatch.setenv("RJEM_LR", "0.5")
    printed = rjem("train", "--adv-eps", "8/255", "--print-config")
    lines = {line.split(":")[0]: line for line in printed.out.splitlines()}
    assert lines["adv_eps"].endswith("# flag") and lines["lr"].endswith("# environment")
    assert lines["depth"].endswith("# preset quickstart") and lines["momentum"].endswith("# default")
    file = tmp_path / "again.yaml"
    file.write_text(printed.out)
    monkeypatch.delenv("RJEM_LR")
    again = rjem("train", "-c", file, "--print-config")
    assert yaml.safe_load(again.out) == yaml.safe_load(printed.out)


def test_dry_run_writes_nothing(rjem, own_home):
    outcome = rjem("train", "--dry-run", "--run", "dry")
    assert outcome.code == 0 and "writes" in outcome.err and not own_home.exists()


def test_a_run_is_resumed_with_more_steps(rjem, own_home, trained):
    outcome = rjem("train", "--run", "tiny", "--resume", "auto", "--steps", 5, "--json")
    assert outcome.code == 0 and "resuming at step 3" in outcome.err
    assert json.loads(outcome.out)["step"] == 5
    assert "stretched" not in outcome.err  # the schedule is constant


def test_a_longer_resume_says_how_it_stretches_the_schedule(rjem, own_home):
    flags = ("--dataset", "digits", "--run", "wave", "--lr-schedule", "cosine", *TINY_FLAGS, "--warmup-steps", 0)
    assert rjem("train", *flags, "--steps", 2, "--lr", 0.01).code == 0
    outcome = rjem("train", "--resume", "wave", "--steps", 4)
    assert outcome.code == 0, outcome.err
    assert "stretched over the new length, 4 steps instead of 2: the rate at step 2 is 0.005, not 0" in outcome.err
    assert "stretched" not in rjem("train", "--resume", "wave").err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_resume(own_home, number):
    command = [sys.executable, "-m", "rjem_cli", "train", "--run", "long", *TINY_FLAGS, "--steps", "100000"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # whatever the tests run under
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ, **heard) as process:
        metrics = own_home / "runs/long/metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "resume with: rjem train --resume long" in err.splitlines()[-1]
    assert list((own_home / "runs/long/checkpoints").glob("*.safetensors"))


@pytest.mark.slow
def test_a_signal_saves_though_nobody_listens(own_home):
    """As under `rjem train | tee`, where Ctrl-C ends the listener too."""
    command = [sys.executable, "-m", "rjem_cli", "train", "--run", "long", *TINY_FLAGS, "--steps", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ) as process:
        metrics = own_home / "runs/long/metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert parse_step(checkpoints_in(own_home / "runs/long")[-1]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(own_home, number):
    flags = [*TINY_FLAGS, "--sgld-steps", "1000000"]  # a step without end
    command = [sys.executable, "-m", "rjem_cli", "train", "--run", "long", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training: 0 of") or "repeat to stop at once" in line:
                process.send_signal(number)
            if "repeat to stop at once" in line:
                break
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and rest.splitlines() == [f"{number.name} again: stopped at once"]


def test_a_signal_while_modules_are_imported_is_one_line(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("rjem_cli.__main__.run", interrupted)
    assert main(["train"]) == 130 and capsys.readouterr().err == "rjem: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dataset", "cifar11"], 2, "--dataset 'cifar11' is unknown; did you mean cifar10"),
        (["--adv-eps", "-1"], 2, "--adv-eps -1 is too small; give 0 or more"),
        (["--adv-eps", "8/0"], 2, "--adv-eps '8/0': give a number such as 0.1"),
        (["--preset", "quickstrat"], 2, "did you mean quickstart"),
        (["--data", ""], 2, "--data '': give text"),
        (["--preset", ""], 2, "--preset '' is unknown; choose from"),
        (["--resume", ""], 2, "--resume '': give a name"),
        (["-c", ""], 2, "-c '': give a YAML file"),
        (["--data", "~no-such-user-here/x"], 2, "there is no such home folder"),
        (["--data", "x" * 300], 1, "File name too long"),
        (["--device", "cuda:999"], 3, "CUDA devices are visible"),
        (["--buffer-size", "1000000000000000"], 1, "not enough memory"),
        (["--device", "gpu"], 2, "--device 'gpu' is unknown"),
        (["--precision", "fp12"], 2, "--precision 'fp12' is unknown"),
        (["--no-such-flag"], 2, "--no-such-flag"),
        (["--eps-space", "byte"], 2, "--eps-space 'byte' is unknown"),
        (["--run", "../up"], 2, "--run '../up': give a plain name"),
        (["--run=-h"], 2, "--run '-h': give a plain name"),
        (["--run", ".hidden"], 2, "--run '.hidden': give a plain name"),
        (["--data", "nowhere"], 3, "nowhere does not exist"),
        (["-c", "nowhere.yaml"], 3, "config file nowhere.yaml does not exist"),
        (["--resume", "auto"], 3, "no run to resume in"),
        (["--resume", "nobody"], 3, "start it with --run nobody --resume auto"),
        (["--resume", "auto", "--run", "../up"], 2, "--run '../up': give a plain name"),
        (["--adv-eps", "8"], 2, "--adv-eps 8 covers the whole box [-1, 1]; give at most 255/255"),
        (["--dataset", "cifar10"], 3, "cifar10 is not available"),
    ],
)
def test_bad_input_gives_one_line_and_its_exit_code(rjem, arguments, code, message):
    outcome = rjem("train", *arguments)
    assert outcome.code == code
    assert message in outcome.error_line()


def test_a_bad_yaml_file_is_named(rjem, tmp_path):
    file = tmp_path / "bad.yaml"
    for text, message in (
        ("adv_epz: 1", "did you mean adv_eps"),
        ("[1, 2", "is not valid YAML"),
        ("just text", "keys and values"),
    ):
        file.write_text(text)
        outcome = rjem("train", "-c", file)
        assert outcome.code == 2 and message in outcome.error_line() and "bad.yaml" in outcome.err


def test_a_resumed_run_takes_its_config_from_its_checkpoint(rjem, trained, own_home):
    (own_home / "runs/tiny/config.yaml").write_text("lr: 0.5\n")
    printed = rjem("train", "--resume", "tiny", "--print-config").out
    assert "lr: 0.002" in printed and "# run tiny" in printed


def test_a_checkpoint_without_its_state_is_skipped(rjem, trained, own_home):
    Path(trained["checkpoint"]).with_suffix(".state.safetensors").unlink()
    outcome = rjem("train", "--resume", "tiny", "--steps", 5)
    assert outcome.code == 0 and "skipped: cannot read" in outcome.err and "resuming at step 0" in outcome.err


def test_the_bare_command_shows_its_help(monkeypatch, capsys):
    from rjem_cli.__main__ import main

    monkeypatch.setattr(sys, "argv", ["rjem"])
    assert main() == 0 and "Commands" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">/dev/full"])
def test_a_closed_or_full_output_gives_no_traceback(trained, closed):
    command = f"{sys.executable} -m rjem_cli train --resume tiny --dry-run --print-config {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.returncode == (1 if "full" in closed else 0)


def test_an_existing_run_is_not_overwritten(rjem, trained):
    outcome = rjem("train", "--run", "tiny", *TINY_FLAGS)
    assert outcome.code == 2 and "resume it with --resume tiny" in outcome.error_line()


def test_a_home_that_cannot_be_written_is_named(rjem, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RJEM_HOME", str(tmp_path / "file" / "home"))
    outcome = rjem("train", *TINY_FLAGS)
    assert outcome.code == 1 and "cannot create folder" in outcome.error_line()


def test_a_run_stops_by_itself(rjem, own_home):
    outcome = rjem("train", "--run", "long", *TINY_FLAGS, "--steps", 100000, "--max-time", "4s")
    checkpoint = Path(outcome.out.splitlines()[-1])
    assert outcome.code == 0 and checkpoint.is_file() and checkpoint.parent.parent == own_home / "runs/long"
    last = outcome.err.splitlines()[-1]
    assert last.startswith("--max-time 4s: stopped at step") and last.endswith("rjem train --resume long")
    more = rjem("train", "--resume", "long", "--steps", 100000, "--max-time", "1s", "--json")
    document = json.loads(more.out)
    assert more.code == 0 and Path(document["checkpoint"]) == checkpoint and document["finished"] is False
    for text in ("", "0s", "5", "tomorrow", "1m2h", "-5s", "9" * 30 + "h"):
        refused = rjem("train", "--max-time", text)
        assert refused.code == 2 and f"--max-time {text!r}: give a time such as 90s" in refused.error_line()


def test_a_deadline_leaves_time_for_what_took_longest():
    times = iter([0.0, 10.0, 11.0, 18.0, 42.9, 43.1])  # seven seconds for a step with its checkpoint
    deadline = Deadline("--max-time", "1m", clock=lambda: next(times))
    for _ in range(3):
        deadline.tick()
    assert not deadline.is_near()
    assert deadline.is_near()  # twice seven seconds and two of margin before the minute is over
    assert not Deadline("--max-time", None, clock=lambda: 0.0).is_near()


def test_a_deadline_leaves_time_for_a_checkpoint_that_is_written_beside_the_training():
    deadline = Deadline("--max-time", "1m", clock=lambda: 0.0)
    deadline.note_save(28.0)
    assert not deadline.is_near()
    deadline.note_save(29.0)
    assert deadline.is_near()


def test_an_untrained_checkpoint_is_used_only_if_it_is_named(rjem, own_home, trained):
    first = Path(trained["checkpoint"]).with_name("step-00000000.safetensors")
    rjem("train", "--run", "begun", *TINY_FLAGS, "--max-time", "1s")
    assert first.name == checkpoints_in(own_home / "runs/begun")[-1].name
    assert f"checkpoint: {trained['checkpoint']}" in rjem("generate", "--dry-run").err  # not the newest run's
    for arguments in (("generate", "begun"), ("eval", "begun")):
        refused = rjem(*arguments)
        assert refused.code == 3 and "run begun has not saved a trained checkpoint yet" in refused.error_line()
    path = own_home / "runs/begun/checkpoints" / first.name
    assert rjem("generate", path, "-n", 2, "-o", own_home / "out").code == 0
    assert "from step 0" in rjem("train", "--resume", "auto", "--dry-run").err


def test_a_run_has_one_name_whoever_asks(own_home, trained, tmp_path):
    """One name, one lock."""
    (own_home / "runs/tiny").rename(tmp_path / "elsewhere")
    (own_home / "runs/tiny").symlink_to(tmp_path / "elsewhere")
    assert find_resumable(None) == find_resumable("tiny") == (tmp_path / "elsewhere").resolve()
    (own_home / "runs/next").symlink_to(tmp_path / "new")
    assert new_run_dir("next") == (tmp_path / "new").resolve()


def test_a_run_to_resume_is_named_once(rjem, trained, tmp_path):
    (tmp_path / "c.yaml").write_text("run: tiny")
    rjem("train", "--run", "other", *TINY_FLAGS)
    assert "run tiny" in rjem("train", "--resume", "auto", "-c", tmp_path / "c.yaml", "--dry-run").err
    refused = rjem("train", "--resume", "tiny", "--run", "other")
    assert refused.code == 2 and "--run 'other': --resume tiny names another run" in refused.error_line()
    unfit = rjem("train", "--resume", "tiny", "--width", 2, "--dry-run")
    assert unfit.code == 2 and "tiny was trained with --width" in unfit.error_line()


def test_of_a_damaged_run_the_whole_checkpoint_is_named(rjem, trained):
    path = Path(trained["checkpoint"])
    rjem("train", "--resume", "tiny", "--steps", 5, "-q")
    newest = path.with_name("step-00000005.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    refused = rjem("generate", "tiny")
    assert refused.code == 1 and refused.error_line().endswith(f"use another checkpoint; {path} is intact")


def test_a_damaged_checkpoint_is_skipped_by_resume_auto(rjem, own_home, trained):
    path = Path(trained["checkpoint"])
    rjem("train", "--resume", "tiny", "--steps", 5, "-q")
    newest = path.with_name("step-00000005.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    outcome = rjem("train", "--resume", "auto", "--steps", 5)
    assert outcome.code == 0 and f"skipped: {newest}" in outcome.err and "resuming at step 3" in outcome.err
    for damaged in path.parent.glob("*.safetensors"):
        damaged.write_bytes(b"")
    refused = rjem("train", "--resume", "auto")
    assert refused.code == 1 and "has no valid checkpoint" in refused.error_line()


def test_a_run_whose_checkpoints_are_all_quarantined_is_not_started_again(rjem, own_home, trained):
    folder = own_home / "runs/tiny/checkpoints"
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_name(path.name + QUARANTINE_SUFFIX))
    for arguments in (("--run", "tiny", "--resume", "auto"), ("--run", "tiny"), ("--resume", "tiny")):
        refused = rjem("train", *arguments, *TINY_FLAGS)
        assert refused.code == 1 and "starting it" not in refused.err
        assert "all checkpoints of run tiny are damaged" in refused.error_line()
        assert f"give another --run, or remove {own_home}/runs/tiny to start again" in refused.error_line()


def test_a_run_with_metrics_but_without_checkpoints_is_not_started_again(rjem, own_home, trained):
    shutil.rmtree(own_home / "runs/tiny/checkpoints")
    refused = rjem("train", "--run", "tiny", "--resume", "auto", *TINY_FLAGS)
    assert refused.code == 1 and "run tiny has a metrics.jsonl but no checkpoint" in refused.error_line()


def test_a_run_whose_folder_cannot_be_read_is_not_started_again(rjem, own_home, monkeypatch):
    (own_home / "runs/tiny/checkpoints").mkdir(parents=True)
    listdir = os.listdir

    def denied(path):
        if Path(path).name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", denied)
    refused = rjem("train", "--run", "tiny", "--resume", "auto", *TINY_FLAGS)
    assert refused.code == 1 and "runs/tiny/checkpoints: Permission denied; give another --run" in refused.error_line()


def test_a_run_killed_before_its_first_checkpoint_is_started(rjem, own_home):
    folder = own_home / "runs/tiny/checkpoints"
    folder.mkdir(parents=True)
    for name in ("config.yaml", ".config.yaml.abcd1234", "checkpoints/.step-00000000.safetensors.abcd1234"):
        (folder.parent / name).write_bytes(b"")
    outcome = rjem("train", "--run", "tiny", "--resume", "auto", *TINY_FLAGS)
    assert outcome.code == 0 and "run tiny does not exist yet; starting it" in outcome.err


def test_resume_auto_means_the_run_and_not_a_folder_of_that_name(rjem, own_home, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(own_home / "runs/tiny", tmp_path / "other")
    outcome = rjem("train", "--run", "other", "--resume", "auto", *TINY_FLAGS)
    assert outcome.code == 0 and "run other does not exist yet; starting it" in outcome.err
    assert checkpoints_in(own_home / "runs/other")


def test_an_invalid_name_is_refused_before_the_run_is_said_to_start(rjem):
    outcome = rjem("train", "--run", "../up", "--resume", "auto")
    assert outcome.code == 2 and "starting it" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--val-fraction", 0.2], {}, "--val-fraction 0.2: run tiny was trained with --val-fraction 0.1"),
        (["--dataset", "cifar10"], {}, "--dataset 'cifar10': run tiny was trained with --dataset digits"),
        (["--data", "."], {}, "--data '{here}': run tiny was trained with --dataset digits; leave it out"),
        ([], {"RJEM_WIDTH": "2"}, "RJEM_WIDTH 2: run tiny was trained with --width 1; resume with that"),
        ([], {"RJEM_PRESET": "rjem"}, "RJEM_PRESET 'rjem': run tiny was started with --preset quickstart"),
        (["-c", "c.yaml"], {}, "c.yaml: buffer_size 64: run tiny was trained with --buffer-size 32"),
    ],
)
def test_a_conflict_on_resume_names_its_source_and_both_values(
    rjem, trained, monkeypatch, tmp_path, arguments, variables, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("buffer_size: 64\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = rjem("train", "--resume", "tiny", *arguments)
    assert outcome.code == 2 and message.format(here=tmp_path) in outcome.error_line()


def test_a_data_set_on_a_run_with_own_images_is_a_conflict(rjem, own_home, trained, tmp_path, monkeypatch):
    write_images(tmp_path / "images")
    assert rjem("train", "--run", "own", "--data", tmp_path / "images", *TINY_FLAGS[2:]).code == 0
    monkeypatch.setenv("RJEM_DATASET", "cifar10")
    outcome = rjem("train", "--resume", "own", "--steps", 4)
    assert outcome.code == 2
    assert "RJEM_DATASET 'cifar10': run own was trained with --data images; leave it out" in outcome.error_line()


def test_a_rate_of_10_ends_with_exit_5_and_a_valid_checkpoint(rjem, own_home):
    outcome = rjem("train", "--run", "wild", *TINY_FLAGS, "--lr", 10, "--steps", 60, "--warmup-steps", 0)
    assert outcome.code == 5 and "its newest checkpoint is" in outcome.error_line()
    assert outcome.err.count("diverged at step") == 3 and "diverged 4 times" in outcome.error_line()
    checkpoint = own_home / "runs/wild/checkpoints/step-00000000.safetensors"
    assert rjem("generate", checkpoint, "-n", 2, "-o", own_home / "samples").code == 0
