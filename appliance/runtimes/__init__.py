"""Adapters that run engines, each in a child process of its own. They know no journal and no spool.

`process` is the daemon's side; `child` is the program it starts, and `onnx` is code inside that program.
"""
