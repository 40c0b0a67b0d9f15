#!/usr/bin/env bash
# GCC 12.2's own function for configuring AMX tiles reads 64 bytes and tells the optimiser of 8
#
# Versions: GCC 12.2.0 (Debian 12; exit 77 elsewhere). The code is compiled, not run, so no AMX is needed.
# A local struct with the shapes of eight tiles is filled and handed to `_tile_loadconfig`. The function's constraint names
# a pointer's worth of memory, so at -O2 the stores of all that follows are dropped as dead, and the processor would be
# given what lay on the stack: another shape, or an exception. At -O0 all stores are there, so a debug build works.
# An assembler statement of one's own with the whole struct as its operand keeps them.
# Seen (stores of the eight 64s, stores of the eight 16s in the code before `ldtilecfg`):
#> -O0, _tile_loadconfig: 64 kept, 16 kept
#> -O2, _tile_loadconfig: 64 dropped, 16 dropped
#> -O2, asm with the struct: 64 kept, 16 kept
# Here: csrc/cpu/tile.h and benchmarks/fma_peak.cpp have the statement; csrc/testing/test_tiles.cpp runs it.
set -euo pipefail
gcc=${CC:-gcc}
case "$("$gcc" -dumpfullversion 2>/dev/null) $(uname -m)" in "12.2.0 x86_64") ;; *) echo "skipped: needs GCC 12.2.0"; exit 77 ;; esac
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
cat >"$tmp/config.c" <<'C'
#include <immintrin.h>
struct shape {
  unsigned char palette, start, reserved[14];
  unsigned short bytes[16];
  unsigned char rows[16];
};
void configure(void) {
  struct shape s = {.palette = 1};
  for (int i = 0; i < 8; ++i) s.bytes[i] = 64, s.rows[i] = 16;
#ifdef WHOLE
  __asm__ volatile("ldtilecfg %0" ::"m"(s));
#else
  _tile_loadconfig(&s);
#endif
}
C
look() {  # label, flags
  local label=$1 code
  shift
  code=$("$gcc" -mamx-tile "$@" -S "$tmp/config.c" -o - | sed -n '/^configure:/,/ldtilecfg/p'; \
    "$gcc" -mamx-tile "$@" -S "$tmp/config.c" -o - | sed -n '/^\.LC/,/^$/p')
  local sixty=dropped sixteen=dropped
  # Eight 16-bit 64s are 0x0040 repeated, eight 8-bit 16s 0x10 repeated, as immediates or constants.
  grep -qE '\$64,|18014673391583296|\b64$|4194368' <<<"$code" && sixty=kept
  grep -qE '\$16,|1157442765409226768|269488144' <<<"$code" && sixteen=kept
  echo "$label: 64 $sixty, 16 $sixteen"
}
{
  look "-O0, _tile_loadconfig" -O0
  look "-O2, _tile_loadconfig" -O2
  look "-O2, asm with the struct" -O2 -DWHOLE
} >"$tmp/seen"
sed -n 's/^#> //p' "$0" >"$tmp/stated"
diff "$tmp/stated" "$tmp/seen" && echo "as stated"
