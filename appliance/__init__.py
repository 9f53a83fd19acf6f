"""Scanside: an edge appliance that keeps, reads and forwards medical images."""

__version__ = "0.1.0"
