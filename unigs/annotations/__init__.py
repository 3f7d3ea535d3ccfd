"""Data sets as they are distributed -> ``Annotated`` records; see :mod:`unigs.annotations.base`."""

from unigs.annotations.base import Category, Source, Unusable

__all__ = ["Category", "Source", "Unusable"]
