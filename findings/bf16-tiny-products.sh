#!/usr/bin/env bash
# A bfloat16 matrix product of normal numbers, with a normal sum, is exactly 0 on newer processors and right on older ones
#
# Versions: torch 2.14.1 (oneDNN 3.12) on a processor with AVX-512 BF16, with or without AMX (exit 77 elsewhere).
# bfloat16 is used for having float32's range. Of 512 products of 2^-64 by 2^-64 the sum is 2^-119, a normal number in
# both formats, and float32 gives it. The processor's bfloat16 products (`vdpbf16ps`, and tiles alike) take each of them,
# being below 2^-126, as 0 before it is added, with MXCSR's flush-to-zero and denormals-are-zero both off; so torch's
# matrix product is 0. It is right once oneDNN is held to AVX512_CORE, and `dot` of the same vectors is right all the time.
# Distances and cosines of small features, and gradients of early layers, reach these magnitudes.
# Seen (512 products; as a multiple of the true sum):
#> scale 2^-63: bfloat16 matmul 1, conv1d 1, dot 1, float32 matmul 1
#> scale 2^-64: bfloat16 matmul 0, conv1d 0, dot 1, float32 matmul 1
#> held to AVX512_CORE, scale 2^-64: bfloat16 matmul 1, conv1d 1, dot 1, float32 matmul 1
#> the instruction, two products of 2^-63 by 2^-63 1, of 2^-64 by 2^-64 0
# Here: bfloat16 products select the nearest class (`nearest_centroid`), so rows whose distance is that small are measured
# again, with gaps scaled (csrc/README.md, Distances); csrc/testing/test_extremes.cpp and python_tests/test_extremes.py hold
# it, and csrc/testing/test_tiles.cpp holds the tests' model of tiles to the processor.
pins="torch==2.14.1 numpy==2.4.6"
grep -qwE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null || { echo "skipped: no such processor (avx512_bf16)"; exit 77; }
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/tiny.py" <<'PYTHON'
import sys

import torch
import torch.nn.functional as F

note, *scales = sys.argv[1:]
for scale in map(int, scales):
    x = torch.full((16, 512), 2.0**scale)
    h = x.bfloat16()
    true = 512 * 2.0 ** (2 * scale)
    got = {
        "bfloat16 matmul": (h @ h.T)[0, 0],
        "conv1d": F.conv1d(h[..., None], h[..., None])[0, 0, 0],
        "dot": h[0] @ h[0],
        "float32 matmul": (x @ x.T)[0, 0],
    }
    print(f"{note}scale 2^{scale}: " + ", ".join(f"{k} {v.item() / true:g}" for k, v in got.items()))
PYTHON
"$py" -W ignore "$tmp/tiny.py" "" -63 -64 >"$tmp/out"
ONEDNN_MAX_CPU_ISA=AVX512_CORE "$py" -W ignore "$tmp/tiny.py" "held to AVX512_CORE, " -64 >>"$tmp/out"
cat >"$tmp/pair.c" <<'C'
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
static double pair(int scale) { /* over the true sum */
  float number = ldexpf(1, scale), sum[16];
  uint32_t bits;
  memcpy(&bits, &number, 4);
  __m512bh row = (__m512bh)_mm512_set1_epi16((short)(bits >> 16));
  _mm512_storeu_ps(sum, _mm512_dpbf16_ps(_mm512_setzero_ps(), row, row));
  return sum[0] / ldexp(2, 2 * scale);
}
int main(void) {
  _mm_setcsr(_mm_getcsr() & ~0x8040u); /* flush to zero, denormals are zero: off */
  printf("the instruction, two products of 2^-63 by 2^-63 %g, of 2^-64 by 2^-64 %g\n", pair(-63), pair(-64));
}
C
"${CC:-cc}" -O1 -mavx512f -mavx512bw -mavx512bf16 "$tmp/pair.c" -o "$tmp/pair" -lm && "$tmp/pair" >>"$tmp/out"
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
