"""Structure-aware mutants of every format: a reader returns a sound table or raises `GWorldError`, nothing else."""
