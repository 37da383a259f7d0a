"""What came of cases, and how it is told."""
