"""From a MONAI bundle to an engine package: `bundle` reads, `mapping` finds our words for it, `package` writes."""
