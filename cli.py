"""The command line: parse the arguments, run one command, return an exit code.

0 done; 1 an error, reported in one line, such as a missing input or an output that already exists; 2 bad usage: an
unknown command or option, or an invalid value; 3 part of a batch, a folder or a recording failed and the rest is done;
130 Ctrl-C. SIGTERM and SIGHUP end a command as Ctrl-C does, with 143 and 129, and Ctrl-Break on Windows with 149. Where
SIGHUP is ignored (nohup), it stays ignored.
Data goes to stdout, messages to stderr. Each command is defined in `commands.py` of the layer that does its work.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

INTERRUPTED = 130
AGAIN_S = 0.01  # after this, the function that swallowed an interrupt has most likely returned

try:
    import click

    from . import __version__
    from .calibration.commands import calibrate, export
    from .pipeline.commands import batch, bench, doctor, live
    from .pipeline.talk import StderrHandler, log, say
    from .tracker.errors import FacetrackError
    from .training.commands import evaluate, models, probe, train
except KeyboardInterrupt:  # nothing has begun: no traceback
    sys.exit(INTERRUPTED)

if TYPE_CHECKING:
    from .pipeline.open import Choices, Engines, OpenEngines

COMMANDS = (live, batch, evaluate, export, models, doctor, bench, train, calibrate, probe)


class _Commands(click.Group):
    """Treats options without a command as options of `live`: `facetrack --camera 0`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            command = next((word for word in args if word in self.commands), None)
            if command:
                raise click.UsageError(f"options go after the command: facetrack {command} ... {args[0]}", ctx)
            args = ["live", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; after Ctrl-C, end the line if stderr is a terminal, which shows ^C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            if sys.stderr.isatty():
                say("")
            raise click.Abort from interrupt


@click.group(cls=_Commands, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="facetrack")
def _commands() -> None:
    """Track facial landmarks in video.

    `facetrack --camera 0` is short for `facetrack live --camera 0`.
    """


def main(arguments: Sequence[str] | None = None, engines: OpenEngines | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: what follows the program's name; default: the arguments of this process.
        engines: opens the networks; default: `pipeline.open.open_engines`.
    """
    _prepare_process()
    log.handlers = [StderrHandler()]
    log.setLevel(logging.WARNING)
    with _ensure_stderr(), _TerminationSignals() as termination:
        return _run(arguments, engines or _open_engines, termination)


def _run(arguments: Sequence[str] | None, engines: OpenEngines, termination: _TerminationSignals) -> int:
    try:
        # On Windows click expands globs, because no shell does so there; `batch` expands them itself.
        code = _commands.main(
            arguments, prog_name="facetrack", standalone_mode=False, windows_expand_args=False, obj=engines
        )
    except click.ClickException as error:
        error.show()
        _hint_at_dashes(error, sys.argv[1:] if arguments is None else arguments)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return termination.exit_code
    except FacetrackError as error:
        return _fail(error, str(error))
    except OSError as error:
        if termination.by:  # the terminal that messages went to is gone
            return termination.exit_code
        if error.errno is None:  # not from the operating system: a bug of ours
            raise
        return _fail(error, f"{error.filename or 'stdout or a file'}: cannot be read or written: {error.strerror}")
    return code or 0


def _hint_at_dashes(error: click.ClickException, arguments: Sequence[str]) -> None:
    """Say how to name a file that was taken for an option."""
    files = [word for word in arguments if word.startswith("-") and Path(word).exists()]
    if files and isinstance(error, click.NoSuchOption):
        say(f"To name the file {files[0]}, write ./{files[0]} or put -- before it.")


class _TerminationSignals:
    """Turns the first SIGTERM, SIGHUP or SIGBREAK into a KeyboardInterrupt; later ones do not disturb the clean-up.

    Python swallows a KeyboardInterrupt, also one of Ctrl-C, if it is raised in a `__del__` or a function in
    `gc.callbacks`; it is raised again a moment later. Ignored signals stay ignored, as nohup requires. Outside the main
    thread, the only one that receives signals, nothing changes.

    Attributes:
        by: number of the signal received; 0 if none was.
    """

    def __init__(self) -> None:
        self.by = 0
        self._before: dict[int, Any] = {}
        self._hook: Callable[[sys.UnraisableHookArgs], Any] | None = None  # before ours
        self._again: threading.Timer | None = None  # for an interrupt that was swallowed

    @property
    def exit_code(self) -> int:
        """The code that a shell reports for a program ended by a signal."""
        return 128 + self.by if self.by else INTERRUPTED

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self.by or self._again is not None:
            self.by, self._again = self.by or number, None
            raise KeyboardInterrupt

    def _note_swallowed(self, error: sys.UnraisableHookArgs) -> None:
        if error.exc_type is not KeyboardInterrupt:
            if self._hook is not None:
                self._hook(error)
            return
        self._again = threading.Timer(AGAIN_S, interrupt_main, (self.by or signal.SIGINT,))
        self._again.daemon = True
        self._again.start()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._hook, sys.unraisablehook = sys.unraisablehook, self._note_swallowed
            for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # Windows has no SIGHUP; only Windows has SIGBREAK
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._hook is not None:
            sys.unraisablehook = self._hook
        if self._again is not None:
            self._again.cancel()


@contextmanager
def _ensure_stderr() -> Iterator[None]:
    """Open the null device where stderr is closed, so that no file that is opened later gets its descriptor, 2."""
    if sys.stderr is not None:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as sys.stderr:  # noqa: PTH123 - no file
        try:
            yield
        finally:
            sys.stderr = None


def _fail(error: Exception, line: str) -> int:
    from .pipeline.progress import one_line

    log.debug("", exc_info=True)
    say(one_line(f"facetrack: {'; '.join([line, *getattr(error, '__notes__', [])])}"))
    return 1


def _open_engines(choices: Choices) -> AbstractContextManager[Engines]:
    from .pipeline.open import open_engines

    return open_engines(choices)


def _prepare_process() -> None:
    """Set up the process and the variables that libraries read on first import; the user's own values stay."""
    gc.set_threshold(5_000, 100)  # startup makes 180,000 lasting objects; scanning them repeatedly takes 75 ms
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads and their memory are useless here
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # we log what cannot be decoded ourselves
    if isinstance(sys.stdout, io.TextIOWrapper):  # to a file, Windows uses a legacy code page without most characters
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr
