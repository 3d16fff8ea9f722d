"""Sort the lines of a page into the order in which a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Minimum width of a column, as a fraction of the text's width, and minimum number of its pieces; cells of a table are
# not columns.
_COLUMN_WIDTH = 0.25
_COLUMN_PIECES = 5
# Two pieces are on one line if the middle of one lies within this fraction of the other's height.
_SAME_LINE = 0.35


@dataclass(frozen=True)
class Piece:
    """A recognized piece of a line and the box around it, in pixels from the top left."""

    left: float
    top: float
    right: float
    bottom: float
    text: str


def in_reading_order(pieces: Sequence[Piece]) -> list[str]:
    """Return the lines of a page from top to bottom, column by column if the page has columns.

    A heading comes before the columns below it, and a footer after the columns above it (a simplified XY cut: Nagy and
    Seth, 1984).
    """
    if not pieces:
        return []
    width = max(piece.right for piece in pieces) - min(piece.left for piece in pieces)
    middle = min(piece.left for piece in pieces) + width / 2
    # Pieces that cross the middle divide the page; between two such pieces there may be two columns.
    lines: list[str] = []
    band: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.top):
        if piece.left < middle < piece.right:
            lines += _band(band, middle, width)
            band = []
            lines += _as_lines([piece])
        else:
            band.append(piece)
    return lines + _band(band, middle, width)


def _band(pieces: list[Piece], middle: float, width: float) -> list[str]:
    """Order the pieces between two that cross the middle, as two columns if both sides look like a column."""
    left = [piece for piece in pieces if piece.right <= middle]
    right = [piece for piece in pieces if piece.left >= middle]
    if all(_is_column(side, width) for side in (left, right)):
        return _as_lines(left) + _as_lines(right)
    return _as_lines(pieces)


def _is_column(pieces: Sequence[Piece], width: float) -> bool:
    widths = sorted(piece.right - piece.left for piece in pieces)
    return len(pieces) >= _COLUMN_PIECES and widths[len(widths) // 2] >= _COLUMN_WIDTH * width


def _as_lines(pieces: Sequence[Piece]) -> list[str]:
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.top + piece.bottom) / 2):
        middle = (piece.top + piece.bottom) / 2
        last = lines[-1][0] if lines else None
        if last is not None and abs(middle - (last.top + last.bottom) / 2) <= _SAME_LINE * (last.bottom - last.top):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [" ".join(piece.text for piece in sorted(line, key=lambda piece: piece.left)) for line in lines]
