#!/usr/bin/env bash
# GCC 12.2's AddressSanitizer: each swapcontext costs as much as the stack it comes to is large
#
# Versions: GCC 12.2.0 with its libasan 8, glibc 2.36 (Debian 12; exit 77 elsewhere).
# Two contexts of makecontext hand over to each other. Under -fsanitize=address every swapcontext first clears the shadow
# of the whole stack it comes to, by the `uc_stack` of that context, so a switch to a stack of 1 MB writes 128 KB; and what
# the sanitizer knew of frames that wait on that stack, their red zones, is gone when they go on. glibc reads `uc_stack` in
# makecontext alone: emptied after it, a switch costs the same for any stack, and red zones stay.
# Seen (CPU time of a switch to a stack of 1 MB over one of 16 KB, least of seven runs each):
#> no sanitizer: the same
#> AddressSanitizer: over 10 times
#> AddressSanitizer, uc_stack emptied after makecontext: the same
# Here: csrc/testing/host_cuda/cuda_runtime.h, where each CUDA thread is such a context, empties it.
set -euo pipefail
gcc=${CC:-gcc}
case "$("$gcc" -dumpfullversion 2>/dev/null) $(uname -m)" in "12.2.0 x86_64") ;; *) echo "skipped: needs GCC 12.2.0"; exit 77 ;; esac
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
cat >"$tmp/switch.c" <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <ucontext.h>
static ucontext_t back, fiber;
static void body(void) {
  for (;;) swapcontext(&fiber, &back);
}
static double seconds(size_t size) {
  void* stack = malloc(size);
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = stack;
  fiber.uc_stack.ss_size = size;
  makecontext(&fiber, body, 0);
#ifdef EMPTIED
  fiber.uc_stack.ss_sp = NULL;
  fiber.uc_stack.ss_size = 0;
#endif
  double least = 1e9;
  for (int run = 0; run < 7; ++run) {
    const clock_t begin = clock();
    for (int i = 0; i < 20000; ++i) swapcontext(&back, &fiber);
    const double took = (double)(clock() - begin) / CLOCKS_PER_SEC;
    if (took < least) least = took;
  }
  free(stack);
  return least;
}
int main(void) {
  const double small = seconds(16 << 10), large = seconds(1 << 20);
  fprintf(stderr, "%.2f and %.2f us\n", small / 0.02, large / 0.02);
  puts(large > 10 * small ? "over 10 times" : large < 1.5 * small ? "the same" : "between");
}
C
look() {  # label, flags
  local label=$1
  shift
  "$gcc" -O1 -g "$@" "$tmp/switch.c" -o "$tmp/switch"
  echo "$label: $("$tmp/switch")"
}
{
  look "no sanitizer"
  look "AddressSanitizer" -fsanitize=address
  look "AddressSanitizer, uc_stack emptied after makecontext" -fsanitize=address -DEMPTIED
} >"$tmp/seen"
sed -n 's/^#> //p' "$0" >"$tmp/stated"
diff "$tmp/stated" "$tmp/seen" && echo "as stated"
