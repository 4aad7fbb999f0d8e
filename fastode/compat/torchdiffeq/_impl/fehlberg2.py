"""The method fehlberg2."""

from fastode.dropin.adaptive import Fehlberg2

__all__ = ["Fehlberg2"]
