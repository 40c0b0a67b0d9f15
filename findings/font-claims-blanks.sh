#!/usr/bin/env bash
# Brush and handwriting fonts claim 12,204 Chinese characters and draw three quarters of them, or all, as nothing
#
# Versions: Debian's fonts-aoyagi-kouzan-t 20160404-6, fonts-seto 6.20-8 and fonts-ipaexfont-mincho 00401-5 (exit 77
# without apt), fontTools 4.68.0, Pillow 13.0.0.
# A font's character map is what says which characters it has. In these fonts it names a glyph for every
# character of a Japanese standard set, each glyph its own and none of them .notdef (a box), but glyphs that nobody drew
# have no outline and a full advance. So a missing character is neither "missing" by the map, nor equal to .notdef, nor
# the same glyph twice: it is white space, and a training image of it is an empty one with a label.
# Seen (of U+4E00 to U+9FFF: in the map; distinct glyphs; without outline; blank when rendered by Pillow):
#> AoyagiKouzanT.ttf: 12204 mapped, 12204 glyphs, 9239 without outline, 9239 blank
#> setofont-ex.ttf: 12204 mapped, 12204 glyphs, 12204 without outline, 12204 blank
#> ipaexm.ttf: 9572 mapped, 9572 glyphs, 0 without outline, 0 blank
# Here: characters are kept by their ink (`oltr_ext/data/glyphs.py`);
# python_tests/test_glyphs.py::test_blank_missing_and_ambiguous_characters_are_dropped.
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
command -v apt-get >/dev/null || { echo "skipped: no apt"; exit 77; }
chmod 755 "$tmp" && python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q fonttools==4.68.0 pillow==13.0.0
(cd "$tmp" && apt-get download -qq fonts-aoyagi-kouzan-t=20160404-6 fonts-seto=6.20-8 fonts-ipaexfont-mincho=00401-5 2>/dev/null)
for package in "$tmp"/*.deb; do dpkg-deb -x "$package" "$tmp/fonts"; done
"$tmp/venv/bin/python" - "$tmp/fonts" >"$tmp/out" <<'PYTHON'
import logging
import sys
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import ImageFont

logging.disable()
for name in ("AoyagiKouzanT.ttf", "setofont-ex.ttf", "ipaexm.ttf"):
    (path,) = Path(sys.argv[1]).rglob(name)
    font, pen = TTFont(path), ImageFont.truetype(path, 28, layout_engine=ImageFont.Layout.BASIC)
    glyph_of = {c: g for c, g in font.getBestCmap().items() if 0x4E00 <= c <= 0x9FFF}
    assert font.getGlyphOrder()[0] not in glyph_of.values() and font["glyf"][font.getGlyphOrder()[0]].numberOfContours
    empty = sum(font["glyf"][g].numberOfContours == 0 for g in glyph_of.values())
    blank = sum(pen.getmask(chr(c)).getbbox() is None for c in glyph_of)
    print(f"{name}: {len(glyph_of)} mapped, {len(set(glyph_of.values()))} glyphs, {empty} without outline, {blank} blank")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
