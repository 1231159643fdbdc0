"""`rjem env`: what rjem runs on, for bug reports."""

import os
from typing import Any

from rjem_cli import paths
from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_bytes
from rjem_cli.cli.options import AsJson
from rjem_cli.config.sources import ENVIRONMENT_PREFIX


def env(as_json: AsJson = False) -> None:
    """Show what a bug report needs: versions, devices, what auto chooses and why, folders, RJEM_ variables.

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
        "cache": str(paths.cache_dir()),
        "offline": paths.offline(),
        "variables": variables,
    }
    if as_json:
        console.document(document)
    else:
        console.table("", ("what", "value"), table_rows(document))


def table_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
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
            f"{'bf16' if gpu['bf16'] else 'no bf16, use fp16'}, CUDA {gpu['cuda']}",
        )
        for gpu in document["gpus"]
    ]
    rows += document["auto"].items()
    rows += [("home", document["home"]), ("cache", document["cache"])]
    rows += [("offline", "yes, RJEM_OFFLINE is set" if document["offline"] else "no")]
    return [*rows, *document["variables"].items()]
