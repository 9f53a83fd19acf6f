"""From DICOM files to what an engine takes, and from what it answers to findings.

Knows no journal, no network and no runtime. What cannot be used raises CannotAnalyse with a reason in words.
"""
