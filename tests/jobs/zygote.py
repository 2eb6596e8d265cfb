"""Runs `python -m twmaml.train` again and again without its seconds of imports: each time in a fork of this process.

Reads a JSON object a line ({arguments, folder, seconds, gib}) and answers each with the exit code of the fork, whose
output is in `stdout` and `stderr` in the folder above the one that it ran in. Nothing that has a thread or a device is
started before the fork, so that what runs there cannot tell.
"""

import faulthandler
import importlib
import json
import os
import resource
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

# What a run imports; not twmaml.train itself, which each fork runs as `python -m` does.
for name in (
    "matplotlib.backends.backend_agg",
    "orbax.checkpoint",
    "hydra.main",
    "twmaml.jobs.command_line",
    "twmaml.figures.run",
    "twmaml.jobs.resume",
    "hydra_plugins.twmaml_launcher.sweeper",
):
    importlib.import_module(name)
assert psutil.Process().num_threads() == 1

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the processes that draw figures, if it left some
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()

os.setsid()
folder = Path(request["folder"])
os.chdir(folder)
for number, (path, flags) in enumerate(
    [(os.devnull, os.O_RDONLY), (folder.parent / "stdout", os.O_WRONLY), (folder.parent / "stderr", os.O_WRONLY)]
):
    os.dup2(os.open(path, flags | os.O_CREAT, 0o644), number)
resource.setrlimit(resource.RLIMIT_AS, (request["gib"] * 2**30,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
faulthandler.dump_traceback_later(request["seconds"], exit=True)  # shows where it hangs
sys.argv[1:] = request["arguments"]
runpy.run_module("twmaml.train", run_name="__main__", alter_sys=True)
