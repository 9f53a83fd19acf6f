"""Training of cxr-acquisition: drawn chests, projections of real CT, random faults of acquisition, a small network."""
