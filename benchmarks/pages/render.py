"""Draw each page of the handbooks as a PNG: the same bytes from the same content and the same Pillow.

    python benchmarks/pages/render.py OUT [--dpi 100]

The font is the one inside Pillow (Aileron Regular, CC0), so nothing has to be installed.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

from handbook import Block, Page, read_pages
from PIL import Image, ImageDraw, ImageFont

# A4 and its margins, in points of 1/72 inch, as are all sizes below.
WIDTH, HEIGHT, MARGIN, GUTTER = 595.0, 842.0, 54.0, 20.0
TOP, BOTTOM = 96.0, HEIGHT - 62.0
SIZE = {"title": 19.0, "heading": 12.5, "text": 11.5, "table": 11.0, "small": 9.5}
LEADING = 1.36
# Of the size; the font's own spaces nearly vanish at 100 dots an inch.
SPACE = 0.3
BLACK, GREY, PALE, WHITE = 20, 110, 237, 255
TITLE_ROOM, FIGURE_HEIGHT, BAR_HEIGHT = 40.0, 190.0, 19.0


class PageFullError(ValueError):
    """A text does not fit in its place."""


@cache
def _font(size: float, dpi: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size * dpi / 72)


@cache
def _missing(character: str, dpi: int) -> bool:
    font = _font(SIZE["text"], dpi)
    return bytes(font.getmask(character)) == bytes(font.getmask("\uffff"))


@cache
def _word(text: str, size: float, dpi: int) -> float:
    return _font(size, dpi).getlength(text) * 72 / dpi


@cache
def _ink(word: str, size: float, dpi: int) -> Image.Image:
    """Return a word as a mask: most words come many times, and drawing letters is the slow part."""
    font = _font(size, dpi)
    mask = Image.new("L", (int(font.getlength(word)) + 4, round(1.5 * font.size)))
    ImageDraw.Draw(mask).text((1, 0), word, font=font, fill=255)
    return mask


class Sheet:
    """A page being drawn; positions are in points from the top left.

    Each method that draws a block returns its height, and with ``draw=False`` does no more than that.
    """

    def __init__(self, page: Page, dpi: int):
        self.page, self.dpi, self.scale = page, dpi, dpi / 72
        self.image = Image.new("L", (round(WIDTH * self.scale), round(HEIGHT * self.scale)), WHITE)
        self.canvas = ImageDraw.Draw(self.image)

    def px(self, *points: float) -> tuple[int, ...]:
        """Return points as pixels."""
        return tuple(round(point * self.scale) for point in points)

    def width(self, text: str, size: float) -> float:
        """Return how wide a line is."""
        words = text.split(" ")
        return sum(_word(word, size, self.dpi) for word in words) + (len(words) - 1) * SPACE * size

    def write(self, x: float, y: float, text: str, size: float, *, bold: bool = False, color: int = BLACK) -> None:
        """Write a line."""
        for character in set(text) - {" "}:
            if _missing(character, self.dpi):
                raise ValueError(f"{self.page.file}: the font has no {character!r}")
        # There is no bold cut of the font: two copies, a little apart.
        shifts = (0, max(1, round(0.03 * size * self.scale))) if bold else (0,)
        for word in text.split(" "):
            left, top = self.px(x, y)
            for shift in shifts:
                self.canvas.bitmap((left + shift - 1, top), _ink(word, size, self.dpi), fill=color)
            x += self.width(word, size) + SPACE * size

    def wrap(self, text: str, size: float, width: float) -> list[str]:
        """Return the text in lines no wider than the width."""
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self.width(longer, size) <= width:
                lines[-1] = longer
            elif lines[-1]:
                lines.append(word)
            if self.width(lines[-1] or word, size) > width:
                raise PageFullError(f"{self.page.file}: {word!r} is wider than its place")
        return lines

    def paragraph(self, x: float, y: float, width: float, text: str, size: float, *, draw: bool, bold=False) -> float:
        """Write wrapped text and return its height."""
        lines = self.wrap(text, size, width - (1.5 if bold else 0))
        for number, line in enumerate(lines):
            if draw:
                self.write(x, y + number * size * LEADING, line, size, bold=bold)
        return len(lines) * size * LEADING

    def block(self, block: Block, x: float, y: float, width: float, *, draw: bool) -> float:
        """Draw a block at (x, y) and return its height with the space below it."""
        size = SIZE["text"]
        match block.kind:
            case "heading":
                return 4 + self.paragraph(x, y + 4, width, block.text, SIZE["heading"], draw=draw, bold=True) + 3
            case "text":
                return self.paragraph(x, y, width, block.text, size, draw=draw) + 7
            case "item" | "step":
                mark, _, text = block.text.partition(" ") if block.kind == "step" else ("-", "", block.text)
                if draw:
                    self.write(x + 2, y, mark, size)
                return self.paragraph(x + 17, y, width - 17, text, size, draw=draw) + 4
            case "warning":
                return self.warning(block, x, y, width, draw=draw)
            case "table":
                return self.table(block, x, y, width, draw=draw)
            case "bars":
                return self.bars(block, x, y, width, draw=draw)
            case "drawing":
                return self.drawing(block, x, y, width, draw=draw)
            case kind:
                raise ValueError(f"{self.page.file}: a page has no {kind!r}")

    def warning(self, block: Block, x: float, y: float, width: float, *, draw: bool) -> float:
        """Draw a warning in a box with a sign."""
        size, left = SIZE["text"], 30
        height = self.paragraph(x + left, y, width - left - 8, block.text, size, draw=False) + 12
        if draw:
            self.canvas.rectangle(self.px(x, y, x + width, y + height), fill=PALE, outline=GREY)
            self.canvas.polygon(self.px(x + 8, y + 23, x + 16, y + 8, x + 24, y + 23), outline=BLACK)
            self.write(x + 14.2, y + 10.5, "!", SIZE["table"], bold=True)
            self.paragraph(x + left, y + 6, width - left - 8, block.text, size, draw=True)
        return height + 9

    def caption(self, text: str, x: float, y: float, width: float, *, draw: bool) -> float:
        """Write the caption above a table or figure, if there is one."""
        return self.paragraph(x, y, width, text, SIZE["small"], draw=draw, bold=True) + 3 if text else 0

    def table(self, block: Block, x: float, y: float, width: float, *, draw: bool) -> float:
        """Draw a table with a rule below each row."""
        size, pad = SIZE["table"], 5
        count = len(block.rows[0])
        if any(len(row) != count for row in block.rows):
            raise ValueError(f"{self.page.file}: the rows of {block.text!r} have not all {count} cells")
        wanted = [max(self.width(row[n], size) for row in block.rows) + 2 * pad + 2 for n in range(count)]
        # Each column gets the width that it needs; the widest column takes the difference to the full width.
        widest = wanted.index(max(wanted))
        wanted[widest] += width - sum(wanted)
        top = y + self.caption(block.text, x, y, width, draw=draw)
        for number, row in enumerate(block.rows):
            cells = [self.wrap(cell, size, wide - 2 * pad) for cell, wide in zip(row, wanted, strict=True)]
            height = max(map(len, cells)) * size * LEADING + 5
            if draw:
                if number == 0:
                    self.canvas.rectangle(self.px(x, top, x + width, top + height), fill=PALE)
                self.canvas.line(self.px(x, top, x + width, top), fill=GREY)
                left = x
                for lines, wide in zip(cells, wanted, strict=True):
                    for at, line in enumerate(lines):
                        self.write(left + pad, top + 2 + at * size * LEADING, line, size, bold=number == 0)
                    left += wide
            top += height
        if draw:
            self.canvas.line(self.px(x, top, x + width, top), fill=BLACK)
        return top - y + 12

    def bars(self, block: Block, x: float, y: float, width: float, *, draw: bool) -> float:
        """Draw a chart of horizontal bars, from 0."""
        size, (title, unit) = SIZE["table"], block.text.split("; ")
        top = y + self.caption(f"{title} in {unit}", x, y, width, draw=draw)
        left = x + max(self.width(label, size) for label, _ in block.rows) + 8
        longest = max(float(value) for _, value in block.rows)
        for label, value in block.rows:
            right = left + (x + width - 30 - left) * float(value) / longest
            if draw:
                self.write(x, top + 2, label, size)
                self.canvas.rectangle(self.px(left, top + 2, right, top + BAR_HEIGHT - 4), fill=GREY)
                self.write(right + 6, top + 2, value, size)
            top += BAR_HEIGHT
        if draw:
            self.canvas.line(self.px(left, top - len(block.rows) * BAR_HEIGHT, left, top), fill=BLACK)
        return top - y + 10

    def drawing(self, block: Block, x: float, y: float, width: float, *, draw: bool) -> float:
        """Draw shapes, and labels with a line to the part that they name."""
        top = y + self.caption(block.text, x, y, width, draw=draw)
        for shape, text, *numbers in block.rows if draw else ():
            at = [float(number) / 100 for number in numbers]
            # A unit is as long downwards as sideways, so that circles are round: the picture stands in the middle.
            unit, left = FIGURE_HEIGHT, x + (width - FIGURE_HEIGHT) / 2
            xs, ys = left + at[0] * unit, top + at[1] * unit
            if shape == "rect":
                box = self.px(xs, ys, xs + at[2] * unit, ys + at[3] * unit)
                self.canvas.rectangle(box, fill=WHITE, outline=BLACK)
            elif shape == "circle":
                r = at[2] * unit
                self.canvas.ellipse(self.px(xs - r, ys - r, xs + r, ys + r), fill=WHITE, outline=BLACK)
            else:
                end = self.px(left + at[2] * unit, top + at[3] * unit)
                if shape == "label":
                    self._label(xs, ys, end, text, limits=(x, x + width))
                else:
                    self.canvas.line((*self.px(xs, ys), *end), fill=BLACK, width=max(1, round(1.2 * self.scale)))
        return top - y + FIGURE_HEIGHT + 10

    def _label(self, x: float, y: float, end: tuple[int, ...], text: str, *, limits: tuple[float, float]) -> None:
        size = SIZE["small"]
        wide = self.width(text, size)
        # Labels right of what they name begin at their point, labels left of it end there.
        left = x if x * self.scale > end[0] else x - wide
        if left < limits[0] or left + wide > limits[1]:
            raise PageFullError(f"{self.page.file}: the label {text!r} does not fit beside its drawing")
        self.canvas.line((*self.px(x - 2 if left == x else x + 2, y + size * 0.6), *end), fill=GREY)
        self.write(left, y, text, size)


def render(page: Page, dpi: int = 100) -> Image.Image:
    """Draw a page.

    Raises:
        PageFullError: if text does not fit.
        ValueError: for a character that the font lacks, a table with a ragged row, an unknown kind of block.
    """
    sheet = Sheet(page, dpi)
    _frame(sheet)
    y, inner = TOP + TITLE_ROOM, WIDTH - 2 * MARGIN
    prose: list[Block] = []
    for block in (*page.blocks, None):
        if block is not None and (page.columns == 1 or block.kind in ("table", "bars", "drawing")):
            y = _columns(sheet, prose, y)
            prose = []
            y += sheet.block(block, MARGIN, y, inner, draw=True)
        elif block is not None:
            prose.append(block)
    y = _columns(sheet, prose, y)
    if y > BOTTOM:
        raise PageFullError(f"{page.file}: the text is {y - BOTTOM:.0f} points longer than the page")
    return sheet.image


def _columns(sheet: Sheet, blocks: list[Block], y: float) -> float:
    """Set blocks in two columns as nearly as high as each other; return where they end."""
    if not blocks:
        return y
    width = (WIDTH - 2 * MARGIN - GUTTER) / 2
    heights = [sheet.block(block, 0, 0, width, draw=False) for block in blocks]
    # A heading must not be the last block of a column.
    cuts = [at for at in range(1, len(blocks) + 1) if blocks[at - 1].kind != "heading"]
    cut = min(cuts, key=lambda at: max(sum(heights[:at]), sum(heights[at:])))
    for x, column in ((MARGIN, blocks[:cut]), (MARGIN + width + GUTTER, blocks[cut:])):
        top = y
        for block in column:
            top += sheet.block(block, x, top, width, draw=True)
    return y + max(sum(heights[:cut]), sum(heights[cut:])) + 4


def _frame(sheet: Sheet) -> None:
    page, small = sheet.page, SIZE["small"]
    right = WIDTH - MARGIN
    sheet.write(MARGIN, 44, f"{page.machine} {page.name}", SIZE["heading"], bold=True)
    sheet.write(right - sheet.width(page.title, small), 46, page.title, small, color=GREY)
    sheet.canvas.line(sheet.px(MARGIN, 64, right, 64), fill=BLACK, width=max(1, round(sheet.scale)))
    sheet.write(MARGIN, TOP - 10, f"{page.number}  {page.title}", SIZE["title"], bold=True)
    sheet.canvas.line(sheet.px(MARGIN, HEIGHT - 50, right, HEIGHT - 50), fill=GREY)
    foot = f"Page {page.number} of {page.of}"
    sheet.write(MARGIN, HEIGHT - 44, f"Tarnmoor Works. {page.edition}", small, color=GREY)
    sheet.write(right - sheet.width(foot, small), HEIGHT - 44, foot, small, color=GREY)


def save(page: Page, folder: Path, dpi: int = 100) -> Path:
    """Write a page as a PNG in shades of grey and return its path."""
    path = folder / page.file
    render(page, dpi).save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dpi", type=int, default=100)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pages = read_pages()
    for page in pages:
        save(page, options.out, options.dpi)
    print(f"{len(pages)} pages in {options.out}")


if __name__ == "__main__":
    main()
