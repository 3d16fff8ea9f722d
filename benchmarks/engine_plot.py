"""Draw the engine's gains over lm-eval's own model, from the tables of benchmarks/results/engine.md.

    python benchmarks/engine_plot.py > docs/assets/engine.svg

A row's gain is in bold, followed by its target. The picture has a background of its own, light or dark.
"""

from __future__ import annotations

import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "engine.md"
ROW = re.compile(r"^\| (?P<work>[^|]+?) \|.*\| \*\*(?P<gain>[\d.]+)x\*\* \| (?P<target>[\d.]+)x \|", re.MULTILINE)
LEFT, WIDTH, STEP, TOP = 390, 780, 30, 52
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14">
<title>Times faster than lm-eval's own model, by task</title>
<style>
.back {{ fill: #ffffff }} text {{ fill: #1f2328 }} .bar {{ fill: #3b6fb6 }}
.target {{ stroke: #b3261e; stroke-width: 3 }}
@media (prefers-color-scheme: dark) {{
.back {{ fill: #1e2129 }} text {{ fill: #e2e4e9 }} .bar {{ fill: #7aa7e0 }} .target {{ stroke: #ff8a80 }}
}}
</style>
<rect class="back" width="{width}" height="{height}" rx="6"/>
<text x="16" y="26">Times faster than lm-eval's own model (CPU time), and the target</text>
<line class="target" x1="484" x2="484" y1="14" y2="32"/>
{rows}
</svg>"""
LINE = """<text x="{end}" y="{text}" text-anchor="end">{work}</text>
<rect class="bar" x="{left}" y="{top}" width="{bar:.0f}" height="18"/>
<line class="target" x1="{target:.0f}" x2="{target:.0f}" y1="{above}" y2="{below}"/>
<text x="{after:.0f}" y="{text}">{gain}</text>"""


def picture(results: str) -> str:
    """Return the picture of a page's tables, the largest gain on top."""
    found = [row for row in ROW.findall(results) if not row[0].endswith("without lm-eval's tasks")]
    rows = sorted(found, key=lambda row: -float(row[1]))
    unit = (WIDTH - LEFT - 60) / max(float(number) for row in rows for number in row[1:])
    lines = []
    for place, (work, gain, target) in enumerate(rows):
        top, bar = TOP + STEP * place, unit * float(gain)
        mark = LEFT + unit * float(target)
        spots = {"end": LEFT - 8, "text": top + 14, "left": LEFT, "top": top, "above": top - 3, "below": top + 21}
        after = max(LEFT + bar, mark) + 8
        lines.append(LINE.format(work=work, gain=gain, bar=bar, target=mark, after=after, **spots))
    return SVG.format(width=WIDTH, height=TOP + STEP * len(rows) + 8, rows="\n".join(lines))


if __name__ == "__main__":
    print(picture(RESULTS.read_text(encoding="utf-8")))
