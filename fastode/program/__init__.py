"""Vector fields as small programs: captured from ordinary batched torch code, lowered to arithmetic on one sample.

``trace`` records a field's torch operations, ``lower`` turns them into the values of ``ir``, ``autodiff`` derives the
pullback, ``evaluate`` executes both in torch, ``verify`` compares them with the field. ``trust`` lists code whose reads
are known, ``watch`` watches a field while it runs on trial, ``describe`` says what it refers to, ``snapshot`` puts that
back, ``known`` recognises a field that was seen before; ``capture`` joins all these. Nothing here knows a backend.
"""
