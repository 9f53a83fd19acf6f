"""Adapters that run engines and read images, each in child processes. They know no journal and no spool.

Engines: `process` is the daemon's side; `child` is the program it starts, and `onnx` is code inside that program.
Images: `reader` is the daemon's side; `reader_program` is the program it starts, and `reader_worker` is code inside it.
"""
