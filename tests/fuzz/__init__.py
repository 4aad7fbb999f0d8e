"""Fuzzing: source text of fields as people write them, and calls of the solvers, against torch and torchdiffeq.

``python -m tests.fuzz --minutes 30`` runs it at length; ``tests/test_fuzz.py`` runs fixed seeds for about a minute.
A case is a value of ``Spec``, ``Call`` or ``Solve``: made from a seed (``random_spec``), written as text, checked
(``check``), and reduced when it fails (``reduce``).
"""
