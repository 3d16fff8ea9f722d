"""Raises on import, as a package does whose compiled part was built for another torch."""

raise ImportError("undefined symbol: _ZN3c105ErrorC2Ev")
