"""The journal: one SQLite file in which the processes meet.

Rules: a transition and its line of history commit together; every transition is a compare-and-set, so a stale
owner changes nothing; FULL where somebody outside was promised something, NORMAL elsewhere; one writer at a time,
in the order of asking; no read transaction outlives its query.
"""
