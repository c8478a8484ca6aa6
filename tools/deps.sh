#!/bin/sh
# Installs what the build needs and this machine lacks. Does nothing, and needs no network, when all
# is there. Arguments name further packages, such as clang; "arm" is what "make test-arm" needs, and
# "nvrtc" the compiler of CUDA, with which the tests compile the kernels where there is no GPU.
set -eu

missing=
need_program() { # program, package
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need_library() { # pkg-config name, package
    if ! command -v pkg-config >/dev/null 2>&1 || ! pkg-config --exists "$1"; then
        missing="$missing $2"
    fi
}

need_program "${CC:-cc}" gcc
need_program meson meson
need_program ninja ninja-build
need_program pkg-config pkg-config
need_library libpcre2-8 libpcre2-dev
need_library libutf8proc libutf8proc-dev
need_library jansson libjansson-dev
need_library libpng libpng-dev
need_library zlib zlib1g-dev
need_library libjpeg libjpeg-dev
need_library libwebp libwebp-dev
need_library libxxhash libxxhash-dev
need_library cmocka libcmocka-dev
nvrtc_script=$(dirname "$0")/nvrtc.py
want_nvrtc=
for package in "$@"; do
    if [ "$package" = nvrtc ]; then
        if ! python3 "$nvrtc_script" check 2>/dev/null; then
            want_nvrtc=yes
            python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
        fi
        continue
    fi
    if [ "$package" != arm ]; then
        need_program "$package" "$package"
        continue
    fi
    need_program aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
    need_program qemu-aarch64 qemu-user
    [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing="$missing libc6-dev-arm64-cross"
    [ -e /usr/lib/aarch64-linux-gnu/pkgconfig/cmocka.pc ] || missing="$missing libcmocka-dev:arm64"
done

# Without it one test is skipped, so a machine without a network is no failure.
fetch_nvrtc() {
    [ -n "$want_nvrtc" ] || return 0
    echo "deps: fetching NVRTC into build-deps/nvrtc"
    python3 "$nvrtc_script" fetch || echo "deps: the test cuda_compile will be skipped" >&2
}

if [ -z "$missing" ]; then
    fetch_nvrtc
    echo "deps: all there"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: missing, by their names in Debian:$missing" >&2
    echo "deps: install them with the package manager of this system, then try again" >&2
    exit 1
fi
echo "deps: installing$missing"
root=
if [ "$(id -u)" -ne 0 ]; then
    root=sudo
fi
case $missing in
*:arm64*) $root dpkg --add-architecture arm64 ;;
esac
$root apt-get update -q
# shellcheck disable=SC2086 # one word for each package
$root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fetch_nvrtc
