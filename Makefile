# The front door. How things are built is written in meson.build; this file only knows which build
# to ask for what.

BUILD ?= build
# Further flags for the set-up of a new build, such as --prefix=/usr or -Dwerror=true.
MESON_FLAGS ?=
FUZZ_SECONDS ?= 10

DEMO_MODEL = models/emoji-256
DEMO_PROMPT = a red apple on a light blue background
TRY_1 = a fox on a light green background
TRY_2 = an owl on a night sky background
TRY_3 = a pizza above a hamburger

SANITIZE = -Db_sanitize=address,undefined -Db_lundef=false --buildtype=debugoptimized
export UBSAN_OPTIONS = print_stacktrace=1:halt_on_error=1

# ninja and meson use all processors by themselves.
.NOTPARALLEL:
.PHONY: all help deps demo test test-arm bench dist format fuzz install clean

all: $(BUILD)/build.ninja
	@echo "build: the library and the program, optimized, in $(BUILD)/"
	@ninja -C $(BUILD)

help:
	@echo "make           build the library and the program in $(BUILD)/"
	@echo "make demo      build, then make a picture: demo.png"
	@echo "make test      all tests, plain and with sanitizers"
	@echo "make test-arm  the tests of the kernels on emulated 64-bit ARM (Debian)"
	@echo "make bench     measure the speed of this machine"
	@echo "make install   install the program, the library and its header"
	@echo "make deps      install what the build needs (Debian, Ubuntu)"
	@echo "make dist      one program that needs nothing but libc: dist/calotype"
	@echo "make fuzz      feed the readers of files with noise, FUZZ_SECONDS=$(FUZZ_SECONDS) each"
	@echo "make format    lay out the sources with clang-format"
	@echo "make clean     remove everything that was built"

$(BUILD)/build.ninja:
	@echo "setup: $(BUILD)/"
	@meson setup $(BUILD) --buildtype=release $(MESON_FLAGS)

$(BUILD)-asan/build.ninja:
	@echo "setup: $(BUILD)-asan/, with address and undefined behaviour sanitizers"
	@meson setup $(BUILD)-asan $(SANITIZE) $(MESON_FLAGS)

build-dist/build.ninja:
	@echo "setup: build-dist/, with static libraries"
	@meson setup build-dist --buildtype=release --prefer-static -Dstatic_deps=true \
	    -Ddefault_library=static -Dstrip=true $(MESON_FLAGS)

build-fuzz/build.ninja:
	@echo "setup: build-fuzz/, with clang, sanitizers and libFuzzer"
	@CC=clang meson setup build-fuzz $(SANITIZE) -Dfuzz=true $(MESON_FLAGS)

build-arm/build.ninja:
	@echo "setup: build-arm/, the kernels and their tests for AArch64"
	@meson setup build-arm --cross-file tools/aarch64-linux.ini -Dkernels_only=true $(MESON_FLAGS)

deps:
	@sh tools/deps.sh nvrtc

# Without the tests, which nobody waits for here, and what they alone need.
demo:
	@sh tools/deps.sh
	@$(MAKE) --no-print-directory $(BUILD)/build.ninja
	@echo "build: the program, optimized, in $(BUILD)/"
	@ninja -C $(BUILD) calotype
	@echo "demo: \"$(DEMO_PROMPT)\" -> demo.png"
	@$(BUILD)/calotype generate -m $(DEMO_MODEL) -p "$(DEMO_PROMPT)" -s 42 -o demo.png
	@echo
	@echo "The picture is demo.png. Three more to try:"
	@echo "  $(BUILD)/calotype generate -m $(DEMO_MODEL) -p \"$(TRY_1)\" -o 1.png"
	@echo "  $(BUILD)/calotype generate -m $(DEMO_MODEL) -p \"$(TRY_2)\" -o 2.png"
	@echo "  $(BUILD)/calotype generate -m $(DEMO_MODEL) -p \"$(TRY_3)\" -o 3.png"

# The last line is "N passed, N failed", also when a build fails.
test: deps
	@echo "test: all tests in $(BUILD)/ and, with sanitizers, in $(BUILD)-asan/"
	@rm -f $(BUILD)/meson-logs/testlog.json $(BUILD)-asan/meson-logs/testlog.json
	@$(MAKE) --no-print-directory $(BUILD)/build.ninja || true
	@ninja -C $(BUILD) && \
	    meson test -C $(BUILD) --no-rebuild --print-errorlogs || true
	@$(MAKE) --no-print-directory $(BUILD)-asan/build.ninja || true
	@ninja -C $(BUILD)-asan && \
	    meson test -C $(BUILD)-asan --no-rebuild --print-errorlogs || true
	@python3 tools/test_summary.py $(BUILD) $(BUILD)-asan

test-arm:
	@sh tools/deps.sh arm
	@$(MAKE) --no-print-directory build-arm/build.ninja
	@echo "test-arm: the kernels on emulated processors, old and new"
	@ninja -C build-arm
	@meson test -C build-arm --no-rebuild --print-errorlogs

bench: all
	@echo "bench: the speed of this machine"
	@$(BUILD)/calotype bench kernels

dist: build-dist/build.ninja
	@echo "dist: one program that needs nothing but libc"
	@ninja -C build-dist calotype
	@mkdir -p dist
	@strip -o dist/calotype build-dist/calotype
	@sh tools/check_dist.sh dist/calotype

format:
	@echo "format: all C sources, as .clang-format says"
	@find include src app cli examples tests -name '*.[ch]' -exec clang-format -i {} +

fuzz: build-fuzz/build.ninja
	@echo "fuzz: $(FUZZ_SECONDS) seconds for each reader of files"
	@ninja -C build-fuzz
	@sh tools/fuzz.sh build-fuzz $(FUZZ_SECONDS)

install: all
	@echo "install: program, library, header"
	@meson install -C $(BUILD) --no-rebuild

clean:
	@echo "clean: everything that was built"
	@rm -rf $(BUILD) $(BUILD)-asan build-arm build-ci build-ci-asan build-clang build-dist \
	    build-fuzz
	@rm -rf dist demo.png
