"""Where a test says which targets it means."""

MODULE = "SCANSIDE_FUZZ_TARGETS"  #: environment variable: another module with TARGETS, to try the rig itself
