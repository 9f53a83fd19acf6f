"""The composition root: what each process is made of. Nothing is decided here.

A module per process, imported by that process alone, so that each carries only what it needs: receive loads neither
pydicom nor numpy, and only analyse loads highdicom.
"""
