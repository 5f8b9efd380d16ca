import os

# ONNX Runtime (1.32) sends telemetry to Microsoft, on Linux too: DNS queries, a device ID and a queue of events in
# the user's cache folder. It reads this variable when it is imported; `disable_telemetry_events` comes too late.
# (Windows builds obey only that function: see `onnx_backend.import_onnxruntime`.)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
