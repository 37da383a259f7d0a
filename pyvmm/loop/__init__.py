"""Running a vCPU: the loop in C, its thread."""
