#!/usr/bin/env bash
# Pillow: from 13.0 on, a tall image resized to the same size has other pixels than before
#
# Versions: Pillow 12.3.0 and 13.0.0 (2026), numpy 2.4.6.
# A resize is two passes, each rounded to eight bits and clipped. Up to 12 columns come first, always; from 13.0 on rows do,
# for speed, where the height shrinks by more than twice as many pixels as the width. The two orders round differently, by a
# level, and clip differently where a filter overshoots, by up to 50 with Lanczos. Wide images stay as they were.
# So a network that was trained on what one version makes of portraits, receipts or spectrograms is fed other pixels by
# the next, and a reference image in a test is no longer met.
# Seen (black and white noise, width x height, to 224 x 224; share of pixels that differ, and by how much at most):
#> 200 x 600: BOX 0 % by 0, BILINEAR 19 % by 1, BICUBIC 83 % by 25, LANCZOS 89 % by 50
#> 600 x 200: BOX 0 % by 0, BILINEAR 0 % by 0, BICUBIC 0 % by 0, LANCZOS 0 % by 0
#> 500 x 1500: BOX 13 % by 1, BILINEAR 15 % by 1, BICUBIC 63 % by 8, LANCZOS 78 % by 16
# Here: an exported program that takes images of any size makes what the Pillow beside it makes, in its order;
# python_tests/test_any_size.py::test_colour.
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
cat >"$tmp/resize.py" <<'PYTHON'
import sys
import numpy as np
from PIL import Image

made = {}
for width, height in ((200, 600), (600, 200), (500, 1500)):
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (height, width))
    for way in ("BOX", "BILINEAR", "BICUBIC", "LANCZOS"):
        small = Image.fromarray(noise).resize((224, 224), Image.Resampling[way])
        made[f"{width} x {height}: {way}"] = np.asarray(small).astype(int)
np.savez(sys.argv[1], **made)
PYTHON
for version in 12.3.0 13.0.0; do
  py=$tmp/$version/bin/python
  python3 -m venv "$tmp/$version" && "$py" -m pip install -q "pillow==$version" numpy==2.4.6
  "$py" "$tmp/resize.py" "$tmp/$version.npz"
done
"$py" - "$tmp" >"$tmp/out" <<'PYTHON'
import sys
import numpy as np

old, new = (np.load(f"{sys.argv[1]}/{version}.npz") for version in ("12.3.0", "13.0.0"))
rows = {}
for name in old:
    gap, (size, way) = abs(old[name] - new[name]), name.split(": ")
    rows.setdefault(size, []).append(f"{way} {100 * (gap > 0).mean():.0f} % by {gap.max()}")
for size, parts in rows.items():
    print(f"{size}: {', '.join(parts)}")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
