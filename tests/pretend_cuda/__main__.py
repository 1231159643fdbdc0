"""Run a module as `python -m` does, on the pretend device, and print its record to stderr: also under torchrun."""

from __future__ import annotations

import os
import runpy
import sys
from unittest import mock

from tests.pretend_cuda import PretendCuda


def main() -> None:
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    cuda, plain_exit = PretendCuda(device_count=int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), os._exit

    def print_and_exit(code: int) -> None:  # a process of torchrun skips Python's cleanup
        print_record(cuda)
        plain_exit(code)

    with cuda, mock.patch.object(os, "_exit", print_and_exit):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            print_record(cuda)


def print_record(cuda: PretendCuda) -> None:
    print("\n".join(cuda.record.summary()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
