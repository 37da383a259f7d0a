"""The cases, one file per subject."""
