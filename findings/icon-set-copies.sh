#!/usr/bin/env bash
# Icon sets of different names, authors and licences in one npm package are copies of one another, path for path
#
# Versions: npm @iconify/json 2.2.535 (2026): 238 sets, 389,132 icons; about 104 MB.
# Splitting train and test by icon set, by author or by licence does not keep images apart: 3,360 icons of `thesvg`, which
# is listed as MIT, are those of `simple-icons`, listed as CC0-1.0, byte for byte; nearly all of `famicons` is in `ion`;
# most of `temaki` is in `pinhead`. Nothing in the package's `collections.json` names the relation, which is also why the
# licence of a drawing is that of whichever set one happened to find it in.
# Seen (identical bodies of sets with different authors, the seven pairs with most):
#> 3360 simple-icons (3736, CC0-1.0) thesvg (3755, MIT)
#> 1270 famicons (1342, MIT) ion (2361, MIT)
#> 314 pinhead (2785, CC0-1.0) temaki (557, CC0-1.0)
#> 131 devicon (1063, MIT) thesvg-color (4899, MIT)
#> 104 ic (10956, Apache-2.0) mdi (7638, Apache-2.0)
#> 85 devicon-plain (800, MIT) thesvg (3755, MIT)
#> 71 feather (286, MIT) lucide (1928, ISC)
# Here: icons that nearly equal another one are dropped across all sets before the sets are dealt out, and forks known by
# name count as one hand; python_tests/test_icons_large.py::test_duplicates_and_lookalikes, ::test_only_usable_icons_are_kept.
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
(cd "$tmp" && npm pack --silent @iconify/json@2.2.535 >/dev/null && tar xzf iconify-json-2.2.535.tgz)
python3 - "$tmp/package" >"$tmp/out" <<'PYTHON'
import json
import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

package = Path(sys.argv[1])
about = json.loads((package / "collections.json").read_text("utf-8"))
count, sets_of = {}, defaultdict(set)
for name in sorted(about):
    icons = json.loads((package / "json" / f"{name}.json").read_text("utf-8"))["icons"]
    count[name] = len(icons)
    for icon in icons.values():
        sets_of[icon["body"]].add(name)
shared = Counter(
    pair
    for sets in sets_of.values()
    for pair in combinations(sorted(sets), 2)
    if about[pair[0]]["author"]["name"] != about[pair[1]]["author"]["name"]
)
for pair, same in sorted(shared.items(), key=lambda item: (-item[1], item[0]))[:7]:
    print(same, *(f"{name} ({count[name]}, {about[name]['license']['spdx']})" for name in pair))
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
