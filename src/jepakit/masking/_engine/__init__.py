"""Computation behind the samplers: sizes and places of blocks, feasibility, random numbers."""

__all__: list[str] = []
