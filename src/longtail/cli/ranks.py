"""One of several processes started by ``torchrun``: who speaks, and how a process leaves."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from longtail.cli.command import note


def several() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process prints results and writes reports."""
    return os.environ.get("RANK", "0") == "0"


def tell(text: str) -> None:
    """Why this process ends, on standard error. Of several processes only the first one that fails says so: what fails
    in the others after that, such as a lost connection, only hides the cause."""
    if not several():
        note(f"longtail: {text}")
    elif first_to_fail():
        who = "" if is_first() else f"process {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}: "
        note(f"longtail: {who}{text}")


def first_to_fail() -> bool:
    """Whether no other process of this job has failed before. The job's meeting point keeps count; it outlives the
    processes, since ``torchrun`` itself holds it. Where it cannot be reached, the answer is yes."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    attempt = [os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        return bool(store.add("/".join(["longtail", "failed", *attempt]), 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True


def leave(code: int) -> int:
    """The exit code; of several processes, one that has failed does not come back. Closing its connections in order
    would wait for the others, which may wait for it; ``torchrun`` ends them once this one is gone."""
    if not several():
        return code
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    return code
