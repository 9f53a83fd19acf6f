"""The rehearsal: a simulated scanner, the real appliance and a small PACS on loopback, and proof of what came through.

Serves `scanside demo` and its outage drill. It starts the same processes as `scanside run`, speaks real DICOM to them
from both sides, and reads the journal as anybody may; nothing in the appliance knows of it.
"""
