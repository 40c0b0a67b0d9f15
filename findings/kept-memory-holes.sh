#!/usr/bin/env bash
# glibc 2.36: told to keep what is freed, malloc takes a hole again, posix_memalign does not
#
# Versions: glibc 2.36 (Debian 12; exit 77 elsewhere), any C compiler.
# MALLOC_MMAP_MAX_=0 with a MALLOC_TRIM_THRESHOLD_ that is never reached keeps large blocks in the process, and saves
# training the faults of fresh pages. A loop that takes 200 MB, then 24 bytes that stay, and frees the 200 MB, needs 200 MB so
# by malloc, however often it runs. By posix_memalign at 64 bytes, as torch takes its tensors, the hole that is left does not
# do for the next block of the same size, and over twenty rounds the heap grows to sixteen of them.
# Seen (the heap's growth in blocks of 200 MB):
#> malloc: 1
#> posix_memalign: 16
# Here: `oltr train` does not set it, and oltr_ext/engine/README.md says why; benchmarks/kept_memory.py has what it gives.
set -euo pipefail
case "$(getconf GNU_LIBC_VERSION 2>/dev/null)" in "glibc 2.36") ;; *) echo "skipped: needs glibc 2.36"; exit 77 ;; esac
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
cat >"$tmp/holes.c" <<'C'
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
static void* take(int aligned, size_t n) {
  void* p = NULL;
  if (!aligned) return malloc(n);
  return posix_memalign(&p, 64, n) == 0 ? p : NULL;
}
int main(int argc, char** argv) {
  const size_t n = (size_t)200 << 20, before = mallinfo2().arena;
  for (int i = 0; i < 20; ++i) {
    void* large = take(argc > 2, n);
    if (large == NULL || malloc(24) == NULL) return 1;
    free(large);
  }
  printf("%s: %zu\n", argv[1], (mallinfo2().arena - before + n / 2) / n);
  return 0;
}
C
"${CC:-cc}" -O1 "$tmp/holes.c" -o "$tmp/holes"
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000
{
  "$tmp/holes" malloc
  "$tmp/holes" posix_memalign aligned
} >"$tmp/seen"
sed -n 's/^#> //p' "$0" >"$tmp/stated"
diff "$tmp/stated" "$tmp/seen" && echo "as stated"
