"""The exceptions that facetrack raises, as one small tree.

FacetrackError
├── SourceError     a camera, video, stream or folder cannot be opened or read
├── SinkError       an output cannot be written
├── CardError       a model card or its weights are missing, broken or altered
├── BackendError    a requested runtime or device is not available
├── MarkupError     points do not fit the landmark markup they should follow
└── ConfigError     a setting is unknown or has an invalid value

A caller's mistake (a wrong shape, a negative size) is a plain ValueError. Every message says what was wanted,
what was found and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class FacetrackError(Exception):
    """Base of everything that facetrack raises on purpose."""


class SourceError(FacetrackError):
    """A camera, video, stream or folder cannot be opened or read."""


class SinkError(FacetrackError):
    """An output cannot be written."""


class CardError(FacetrackError):
    """A model card or its weights are missing, broken or altered."""


class BackendError(FacetrackError):
    """A requested runtime or device is not available."""


class MarkupError(FacetrackError):
    """Points do not fit the landmark markup they should follow."""


class ConfigError(FacetrackError):
    """A setting is unknown or has an invalid value."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Suggest the known name closest to an unknown one, or list all known names if none is close."""
    import difflib  # needed only when something is wrong

    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"wanted one of {', '.join(known)}"


def describe_error(error: Exception) -> str:
    """Describe an error in one line; errors other than facetrack's own include their type and notes."""
    if isinstance(error, FacetrackError):
        return str(error)
    return "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])


def shortened(text: object, most: int = 100) -> str:
    """Shorten a text that may quote a damaged file, where one word can be as long as the file."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[:most]}..."
