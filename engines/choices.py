"""The choices that the engines offer, for code that loads none of them, such as the command line's help."""

from __future__ import annotations

KINDS = ("auto", "onnx", "onnx:cuda", "onnx:tensorrt", "tensorrt", "torch", "torch:cuda")
MAX_FRAME_RATE = 1_000_000  # frames per second: tables give times in microseconds
MIN_FACE = 8  # pixels; searching 3840x2160 for faces this small takes 12 GB, for half the size four times as much
MAX_THREADS = 256  # of one network; a runtime starts them all: a million take minutes
