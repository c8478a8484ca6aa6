#!/bin/sh
# Makes sure that a program needs no shared library but those of libc, and tells which version of
# glibc it wants. usage: tools/check_dist.sh PROGRAM
set -eu

needed=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
for library in $needed; do
    case $library in
    libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | ld-linux*.so.*) ;; # all of them parts of glibc
    *)
        echo "$1 needs $library, which is not a part of libc" >&2
        exit 1
        ;;
    esac
done
version=$(readelf --dyn-syms -W "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
# shellcheck disable=SC2086 # one word for each library
echo "$1: $(wc -c <"$1") bytes, needs" $needed "(${version:-no versioned symbols})"
