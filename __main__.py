"""`python -m facetrack` runs the program `facetrack`."""

import sys

from .cli import main

sys.exit(main())
