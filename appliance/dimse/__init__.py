"""DICOM's network protocol: PDUs, associations, commands, and the small header reader. Knows no journal, no spool."""
