"""DETEST: 25 nonstiff problems, and the accuracy that solvers reach on them, against the accuracy asked for."""
