#!/bin/sh
# Runs each fuzz target on its corpus in tests/fuzz/corpus. What a target finds stays in the build
# folder. usage: tools/fuzz.sh BUILD SECONDS
set -eu

build=$1
seconds=$2
root=$(dirname "$0")/..
count=0
for program in $(find "$build" -type f -name 'fuzz_*' -perm -u+x | sort); do
    name=$(basename "$program")
    found=$build/corpus/${name#fuzz_}
    mkdir -p "$found"
    echo "fuzz: $name"
    if ! "$program" -max_total_time="$seconds" -timeout=10 -artifact_prefix="$build/$name-" \
        "$found" "$root/tests/fuzz/corpus/${name#fuzz_}" >"$build/$name.log" 2>&1; then
        tail -n 40 "$build/$name.log" >&2
        echo "fuzz: $name found a fault; the whole log is $build/$name.log" >&2
        exit 1
    fi
    count=$((count + 1))
done
if [ "$count" -eq 0 ]; then
    echo "fuzz: no targets in $build" >&2
    exit 1
fi
echo "fuzz: $count targets, nothing found"
