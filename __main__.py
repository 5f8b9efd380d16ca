"""`python -m facetrack` is the program `facetrack`."""

import sys

from .cli import main

sys.exit(main())
