"""The benchmarks behind scripts/bench.py: a module each, with `run(options) -> Report`."""
