#!/bin/sh
# Unpacks the distribution's `googletest` source package into $1. Needs no root and touches nothing
# of the system: package lists and cache live in a folder of their own.
set -eu
mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
cd "$1"
get() {
  apt-get -o Dir::State::Lists="$PWD/apt/lists" -o Dir::Cache="$PWD/apt/cache" \
    -o APT::Sandbox::User="$(id -un)" -q "$@"
}
get update
get download googletest
dpkg -x googletest_*.deb .
rm -rf apt googletest_*.deb
