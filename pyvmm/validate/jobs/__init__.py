"""Work on kernels of the lab in pieces that know nothing of each other."""
