"""Adams methods on fixed grids."""

from fastode.dropin.adams import AdamsBashforth, AdamsBashforthMoulton

__all__ = ["AdamsBashforth", "AdamsBashforthMoulton"]
