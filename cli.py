"""The command line: words -> one call -> exit code.

0 done; 1 an error in one line, such as an input that is missing or an output that is there; 2 bad usage: words that the
program does not know, or an option's value that cannot be; 3 a part of a batch failed, of a folder or of a recording,
and the rest is done; 130 Ctrl-C. SIGTERM and SIGHUP end a command as Ctrl-C does, with 143 and 129, and Ctrl-Break on
Windows with 149; where SIGHUP is ignored (nohup), it stays so.
Data goes to stdout, talk to stderr. Each command stands in `commands.py` of the layer that does its work.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

INTERRUPTED = 130

try:
    import click

    from . import __version__
    from .calibration.commands import calibrate, export
    from .pipeline.commands import batch, bench, doctor, live
    from .pipeline.talk import Talk, log, say
    from .tracker.errors import FacetrackError
    from .training.commands import evaluate, models, probe, train
except KeyboardInterrupt:  # nothing has begun: no traceback
    sys.exit(INTERRUPTED)

if TYPE_CHECKING:
    from .pipeline.open import Choices, Engines, OpenEngines

COMMANDS = (live, batch, evaluate, export, models, doctor, bench, train, calibrate, probe)


class _Commands(click.Group):
    """Takes options without a command for those of `live`: `facetrack --camera 0`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            command = next((word for word in args if word in self.commands), None)
            if command:
                raise click.UsageError(f"options go behind the command: facetrack {command} ... {args[0]}", ctx)
            args = ["live", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; after Ctrl-C end the line in which a terminal shows ^C, and no other."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            if sys.stderr.isatty():
                say("")
            raise click.Abort from interrupt


@click.group(cls=_Commands, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="facetrack")
def _commands() -> None:
    """Track the landmarks of faces in video. `facetrack --camera 0` is short for `facetrack live --camera 0`."""


def main(arguments: Sequence[str] | None = None, engines: OpenEngines | None = None) -> int:
    """Run one command and give its exit code.

    Args:
        arguments: the words after the program's name; default: this process's.
        engines: opens the networks; default: `pipeline.open.open_engines`.
    """
    _prepare_process()
    log.handlers = [Talk()]
    log.setLevel(logging.WARNING)
    with _some_stderr(), _ToldToEnd() as told_to_end:
        return _run(arguments, engines or _open_engines, told_to_end)


def _run(arguments: Sequence[str] | None, engines: OpenEngines, told_to_end: _ToldToEnd) -> int:
    try:
        # On Windows click would replace globs by what they match, as no shell does it there; a batch does that itself.
        code = _commands.main(
            arguments, prog_name="facetrack", standalone_mode=False, windows_expand_args=False, obj=engines
        )
    except click.ClickException as error:
        error.show()
        _hint_at_dashes(error, sys.argv[1:] if arguments is None else arguments)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return told_to_end.exit_code
    except FacetrackError as error:
        return _fail(error, str(error))
    except OSError as error:
        if told_to_end.by:  # the terminal that talk went to has gone
            return told_to_end.exit_code
        if error.errno is None:  # not the system's refusal: a mistake of ours
            raise
        return _fail(error, f"{error.filename or 'stdout or a file'}: cannot be read or written: {error.strerror}")
    return code or 0


def _hint_at_dashes(error: click.ClickException, arguments: Sequence[str]) -> None:
    """Say how to name a file that was taken for an option."""
    files = [word for word in arguments if word.startswith("-") and Path(word).exists()]
    if files and isinstance(error, click.NoSuchOption):
        say(f"Write ./{files[0]} for the file of that name, or -- before it.")


class _ToldToEnd:
    """Makes SIGTERM, SIGHUP and SIGBREAK a KeyboardInterrupt, once: what then keeps the rows is not interrupted again.

    Those that are ignored stay ignored, as nohup wants it. Outside the main thread, which alone hears signals, nothing
    is changed.

    Attributes:
        by: the signal that came; 0 if none did.
    """

    def __init__(self) -> None:
        self.by = 0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """As a shell gives it for a program that a signal ended."""
        return 128 + self.by if self.by else INTERRUPTED

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self.by:
            self.by = number
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # Windows has no SIGHUP, and it alone SIGBREAK
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def _some_stderr() -> Iterator[None]:
    """Where stderr is closed, nobody hears the talk; nor may a file that is opened next take its number, 2."""
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
    """Settings of the process, and those that libraries read when first imported; what the user has set stays."""
    gc.set_threshold(5_000, 100)  # a start makes 180,000 objects that stay; to search them again and again takes 75 ms
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads and their memory are of no use here
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what cannot be decoded has a line of our own
    if isinstance(sys.stdout, io.TextIOWrapper):  # into a file, Windows writes an old code page, which lacks most names
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr
