"""The processes that draw figures beside the training."""

import gc
import importlib
import os
import signal
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any


class FigureProcesses(ProcessPoolExecutor):
    """Processes that draw figures. Ctrl-C, which a terminal sends to all of them, is for this one to handle."""

    def submit(self, *arguments: Any, **keywords: Any) -> Any:
        """Hands over a call; a process that is started for it inherits that SIGINT is blocked."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*arguments, **keywords)
        except BrokenProcessPool:  # one of them was killed, for want of memory say; then it is done here
            with ThreadPoolExecutor(1) as here:
                return here.submit(*arguments, **keywords)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def __exit__(self, kind: Any, *error: Any) -> None:
        """Waits for what is being drawn, and for what is still to be drawn unless that was interrupted."""
        self.shutdown(cancel_futures=kind is KeyboardInterrupt)


def drawing_executor(runs: int) -> Executor:
    """An executor that draws figures beside the training: a thread for a run, a process a core for several."""
    workers = min(runs, count_cores())
    if workers == 1:
        return ThreadPoolExecutor(1)
    return FigureProcesses(workers, mp_context=get_context("spawn"), initializer=_prepare_to_draw)


def _prepare_to_draw() -> None:
    """Imports what drawing needs, and spares the garbage collector from looking at it: a tenth of the time to draw."""
    importlib.import_module("twmaml.figures.run")
    gc.freeze()


def count_cores() -> int:
    """Cores that this process may use, which on a cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
