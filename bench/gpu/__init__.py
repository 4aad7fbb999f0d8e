"""Everything that a machine with a GPU is needed for, in one command of under ten minutes: ``python -m bench.gpu``."""
