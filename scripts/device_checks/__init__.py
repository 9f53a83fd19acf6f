"""scripts/device_check: finds a Python with TensorRT and a GPU, then builds, verifies and measures each engine."""
