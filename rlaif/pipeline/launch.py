"""Start several processes of this command that do the run together, as `accelerate launch` does."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rlaif.errors import RankError
from rlaif.ranks import LAUNCHER

__all__ = ["launch"]


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `rlaif ARGUMENTS` in `count` processes and wait for them; the exit status.

    A process that fails ends the others, and has said why by then.

    Raises:
        RankError: One was killed, which so could not say it.
        KeyboardInterrupt: They were interrupted.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    # Each would take all processors of a machine without a GPU.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with TemporaryDirectory(prefix="rlaif-launch-") as logs:
        return _launched(count, arguments, logs)


def _launched(count: int, arguments: Sequence[str], logs: str) -> int:
    """See `launch`.

    Args:
        logs: Folder in which torch leaves how each process ended.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="rlaif",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "rlaif", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise RankError(
                f"rank {rank} of {count} was killed by signal {-failure.exitcode}, and the others were ended",
                remedy="run the same command again: it goes on where it stopped; if memory ran out, with "
                "fewer processes",
            ) from None
        return int(failure.exitcode)
    except SignalException:
        raise KeyboardInterrupt from None
    return 0
