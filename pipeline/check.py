"""One finding of `facetrack doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "absent", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """One answer.

    Attributes:
        subject: what was looked at.
        status: "absent" is something that can be done without.
        detail: what was found.
        remedy: what to do about it; "" where nothing needs to be done.
    """

    subject: str
    status: Status
    detail: str
    remedy: str = ""
