"""facetrack: real-time face landmark tracking."""

__version__ = "0.1.0"
