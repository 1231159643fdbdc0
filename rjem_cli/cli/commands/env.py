"""`rjem env`: what rjem runs on; to paste into a report of a bug."""

from __future__ import annotations

import os
from typing import Any

from rjem_cli import paths
from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_bytes
from rjem_cli.cli.options import AsJson
from rjem_cli.config.sources import ENVIRONMENT_PREFIX


def env(as_json: AsJson = False) -> None:
    """Show versions, devices, what auto takes and why, places, and the RJEM_ variables that are set: to paste into a
    report of a bug.

    Examples:

      rjem env

      rjem env --json | jq .auto
    """
    from rjem_cli.engine.environment import describe_environment

    console = Console(as_json=as_json)
    variables = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(ENVIRONMENT_PREFIX)}
    document = {
        **describe_environment(),
        "home": str(paths.home()),
        "offline": paths.offline(),
        "variables": variables,
    }
    if as_json:
        console.document(document)
    else:
        console.table("", ("what", "value"), rows_of(document))


def rows_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, document[name]) for name in ("rjem", "python", "platform")]
    rows += document["packages"].items()
    cpu = document["cpu"]
    memory = "" if cpu["memory_bytes"] is None else f", {format_bytes(cpu['memory_bytes'])}"
    rows.append(
        ("cpu", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads, {cpu['instructions']}{memory}")
    )
    rows += [
        (
            "gpu",
            f"{gpu['name']}, {format_bytes(gpu['memory_bytes'])}, capability {gpu['capability']}, "
            f"{'bf16' if gpu['bf16'] else 'no bf16, take fp16'}, CUDA {gpu['cuda']}",
        )
        for gpu in document["gpus"]
    ]
    rows += document["auto"].items()
    rows += [("home", document["home"]), ("offline", "yes, RJEM_OFFLINE is set" if document["offline"] else "no")]
    return [*rows, *document["variables"].items()]
