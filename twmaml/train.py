"""The command line: `python -m twmaml.train sampler=importance_delta task=sin3d`."""

import atexit
import gc
import logging
import os
import signal
import sys


def main() -> None:
    """Trains what the command line describes. A user's mistake ends in one line and exit code 1."""
    # Until there is something to write, Ctrl-C ends at once: the interpreter's own way is a traceback of whatever is
    # being imported, or nothing at all where a callback of the garbage collector happens to run.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays: to look through it for garbage, as it grows and at the end, takes a fifth of a short run.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    # Imported here, as the processes that draw figures start by importing this module.
    from twmaml.configuration.config_files import configuration_folder, help_text, register_resolvers  # noqa: PLC0415

    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return
    import hydra  # noqa: PLC0415

    from twmaml.jobs.command_line import check_arguments, exit_with, flags_first  # noqa: PLC0415
    from twmaml.jobs.job import ReportedError  # noqa: PLC0415
    from twmaml.jobs.resume import without_resume  # noqa: PLC0415
    from twmaml.jobs.task import TrainTask  # noqa: PLC0415

    register_resolvers()
    logging.raiseExceptions = False  # a log that cannot be written to, for want of space, is no reason for noise
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here instead of in Hydra's own report
    try:
        sys.argv[1:] = flags_first(without_resume(sys.argv[1:]))
        check_arguments(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="train")(TrainTask())()
    except ReportedError as reported:
        if wants_traceback:
            raise reported.error from reported.error.__cause__
        exit_with(reported.error)
    except KeyboardInterrupt as interrupt:
        exit_with(interrupt)
    except Exception as error:
        if wants_traceback:
            raise
        exit_with(error)


if __name__ == "__main__":
    main()
