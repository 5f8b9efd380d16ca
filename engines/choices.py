"""What may be chosen of the engines, for those who load none, as the command line's help."""

from __future__ import annotations

KINDS = ("auto", "onnx", "onnx:cuda", "onnx:tensorrt", "tensorrt", "torch", "torch:cuda")
FASTEST = 1_000_000  # frames per second: tables tell times in microseconds
LEAST_FACE = 8  # pixels; a search of 3840x2160 for faces so small takes 12 GB, for half of that four times as much
MOST_THREADS = 256  # of one network; a runtime starts them all: a million take minutes
