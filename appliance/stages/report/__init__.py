"""Results as DICOM objects: pure functions of a committed outcome and the headers of what was read.

Building twice gives the same bytes (P3): no clock, no random number and no environment is read. What the result
says follows from `wording`, which the structured report (`sr`) and the picture (`picture`) share. This package
itself is light: highdicom is imported by `sr`, `picture` and `warm`, which only the analyse process loads.
"""

from appliance.stages.report.context import Built, Label, ReportContext
from appliance.stages.report.priority import priority

__all__ = ["Built", "Label", "ReportContext", "priority"]
