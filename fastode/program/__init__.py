"""Vector fields as small programs: captured from ordinary batched torch code, lowered to arithmetic on one sample.

``trace`` records a field's torch operations, ``lower`` turns them into the values of ``ir``, ``autodiff`` derives the
pullback, ``evaluate`` executes both in torch, ``identity`` recognises a field that was seen before, ``capture`` joins
these and keeps what it made. Nothing here knows a backend.
"""
