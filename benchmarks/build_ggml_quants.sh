#!/bin/sh
# The shared library that compare_quantizers.py measures against: ggml's own quantizers, with this machine's instructions.
#
#     benchmarks/build_ggml_quants.sh LLAMA_CPP_DIR OUT.so
#
# LLAMA_CPP_DIR is a source tree of llama.cpp: vendor/llama.cpp of the llama-cpp-python source package
# (pip download --no-deps --no-binary :all: llama-cpp-python, then tar xf). Nothing is written into it.
set -e
src=$1/ggml/src
out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-O3 -march=native -fPIC -ffunction-sections -fdata-sections -I$1/ggml/include -I$src -D_GNU_SOURCE"
[ -e "$src/ggml-version.h" ] || flags="$flags -DGGML_VERSION=\"0\" -DGGML_COMMIT=\"0\""
for file in ggml.c ggml-quants.c; do
  ${CC:-cc} $flags -c "$src/$file" -o "$work/$file.o"
done
for file in ggml.cpp ggml-threading.cpp; do
  ${CXX:-c++} -std=c++17 $flags -c "$src/$file" -o "$work/$file.o"
done
# Only these two are reachable, so that what calls into the rest of ggml is left out.
echo '{ global: ggml_quantize_chunk; ggml_quantize_init; local: *; };' > "$work/exports"
${CXX:-c++} -shared -Wl,--gc-sections -Wl,-z,defs -Wl,--version-script="$work/exports" -o "$out" "$work"/*.o -lm -lpthread
