#!/usr/bin/env bash
# A folder on which nobody can lock: filelock says "held by another", "impossible", or locks all the same, by version
#
# Versions: filelock 3.12.0, 3.20.3, 3.21.0, 3.24.0, 4.2.12 and 4.3.1 (2026) on Linux; needs a C compiler.
# NFS without its lock daemon answers `flock` with ENOLCK, some parallel file systems with EOPNOTSUPP, others with
# ENOSYS. Up to 3.20.3 the first two count as "somebody else has it", a Timeout although nobody has; from 3.21 on they are
# an OSError that names no path. ENOSYS alone is known: NotImplementedError at first, and in 3.24 and later a lock by the
# file's existence, with a warning. A program that admits `filelock` of any version must be ready for all four.
# Seen (flock replaced by one that fails with that error; one attempt of 0.2 s on a free file; "file": by existence):
#> 3.12.0: ENOLCK Timeout, EOPNOTSUPP Timeout, ENOSYS NotImplementedError
#> 3.20.3: ENOLCK Timeout, EOPNOTSUPP Timeout, ENOSYS NotImplementedError
#> 3.21.0: ENOLCK OSError, EOPNOTSUPP OSError, ENOSYS NotImplementedError
#> 3.24.0: ENOLCK OSError, EOPNOTSUPP OSError, ENOSYS file
#> 4.2.12: ENOLCK OSError, EOPNOTSUPP OSError, ENOSYS file
#> 4.3.1: ENOLCK OSError, EOPNOTSUPP OSError, ENOSYS file
# Here: a run's folder is locked by `oltr_ext/engine/lock.py`, with any of these versions; python_tests/test_start.py.
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
printf '#include <errno.h>\n#include <stdlib.h>\nint flock(int f, int how) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }\n' |
  "${CC:-cc}" -shared -fPIC -x c - -o "$tmp/noflock.so"
cat >"$tmp/lock.py" <<'PYTHON'
import os
import sys
import warnings

import filelock

lock = filelock.FileLock(f"{sys.argv[1]}/{os.environ['FLOCK_ERRNO']}-{filelock.__version__}.lock", timeout=0.2)
try:
    with warnings.catch_warnings(record=True) as told, lock:
        answer = "file" if "falling back" in str([w.message for w in told]) else "held"
except (filelock.Timeout, NotImplementedError, OSError) as error:
    answer = type(error).__name__
print({"37": "ENOLCK", "95": "EOPNOTSUPP", "38": "ENOSYS"}[os.environ["FLOCK_ERRNO"]], answer)
PYTHON
for version in 3.12.0 3.20.3 3.21.0 3.24.0 4.2.12 4.3.1; do
  "$tmp/venv/bin/pip" install -q "filelock==$version"
  for number in 37 95 38; do
    LD_PRELOAD="$tmp/noflock.so" FLOCK_ERRNO=$number "$tmp/venv/bin/python" "$tmp/lock.py" "$tmp"
  done | paste -sd, | sed "s/,/, /g; s/^/$version: /"
done >"$tmp/out"
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
