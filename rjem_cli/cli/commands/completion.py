"""`rjem completion`: scripts for completion in the shell."""

from typing import Annotated

import typer

from rjem_cli.cli.console import Console
from rjem_cli.errors import ConfigError, did_you_mean

SHELLS = ("bash", "zsh", "fish")
COMPLETE_VARIABLE = "_RJEM_COMPLETE"


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.", autocompletion=lambda: list(SHELLS))],
) -> None:
    """Print the completion script of a shell.

    Examples:

      source <(rjem completion bash)

      rjem completion fish > ~/.config/fish/completions/rjem.fish
    """
    Console().result(completion_script(shell))


def completion_script(shell: str) -> str:
    """Typer's script. The zsh one also works as a file in fpath, where the first TAB must call the function that it
    defines."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in SHELLS:
        raise ConfigError(f"shell {shell!r} is unknown; {did_you_mean(shell, SHELLS)}")
    script = get_completion_script(prog_name="rjem", complete_var=COMPLETE_VARIABLE, shell=shell).strip()
    if shell == "zsh":
        script += '\n\nif [ "$funcstack[1]" = "_rjem" ]; then _rjem_completion "$@"; fi'
    return script
