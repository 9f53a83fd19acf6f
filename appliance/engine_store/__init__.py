"""The engines that were imported on this machine: their packages, how far each has come, and which of them serves."""
