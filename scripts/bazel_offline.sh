#!/bin/sh
# Runs Bazel targets of this project on a machine that reaches no Bazel repository:
#
#   sh scripts/bazel_offline.sh [TARGET ...]      by default //:light_tests
#
# Works on a copy of the tree, with empty stand-ins for the rule repositories that
# Bazel 4 would download and that Python targets do not use, and with the project's
# own virtual environment as the Python toolchain (`make test` creates it).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python

fail() {
    echo "bazel_offline: $1" >&2
    exit 1
}

[ -x "$python" ] || fail "no $python; run 'make test' first."
"$python" -c 'import hypothesis, pytest' 2>/dev/null ||
    fail "$python has no pytest or no hypothesis, which 'make demo' does not install; run 'make test' first, or '.venv/bin/pip install --no-deps -r requirements-dev.txt'."
command -v bazel >/dev/null 2>&1 || fail "bazel was not found; install Bazel 4."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
(cd "$root" && tar -cf - BUILD pyproject.toml requirements.txt LICENSE README.md docs \
    tff_perfedavg scripts tests) |
    tar -xf - -C "$work/src"
for name in rules_cc rules_java remote_coverage_tools; do
    mkdir -p "$work/stubs/$name"
    echo "workspace(name = \"$name\")" >"$work/stubs/$name/WORKSPACE"
done

mkdir "$work/stubs/rules_cc/cc"
cat >"$work/stubs/rules_cc/cc/BUILD" <<'EOF'
package(default_visibility = ["//visibility:public"])

toolchain_type(name = "toolchain_type")

exports_files(["defs.bzl"])
EOF
cat >"$work/stubs/rules_cc/cc/defs.bzl" <<'EOF'
cc_import = native.cc_import
cc_library = native.cc_library
cc_test = native.cc_test
cc_binary = native.cc_binary
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
EOF

mkdir "$work/stubs/rules_java/java"
touch "$work/stubs/rules_java/java/BUILD"
cat >"$work/stubs/rules_java/java/defs.bzl" <<'EOF'
java_binary = native.java_binary
java_import = native.java_import
java_library = native.java_library
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
java_package_configuration = native.java_package_configuration
EOF

cat >"$work/stubs/remote_coverage_tools/BUILD" <<'EOF'
package(default_visibility = ["//visibility:public"])

filegroup(name = "coverage_report_generator")
filegroup(name = "Main")
EOF

mkdir "$work/stubs/toolchain"
touch "$work/stubs/toolchain/WORKSPACE"
cat >"$work/stubs/toolchain/BUILD" <<EOF
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

package(default_visibility = ["//visibility:public"])

py_runtime(
    name = "python3",
    interpreter_path = "$python",
    python_version = "PY3",
)

py_runtime_pair(
    name = "pair",
    py3_runtime = ":python3",
)

toolchain(
    name = "toolchain",
    toolchain = ":pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
EOF

{
    cat "$root/WORKSPACE"
    for name in rules_cc rules_java remote_coverage_tools toolchain; do
        echo "local_repository(name = \"$name\", path = \"$work/stubs/$name\")"
    done
    echo 'register_toolchains("@toolchain//:toolchain")'
} >"$work/src/WORKSPACE"

cd "$work/src"
[ $# -gt 0 ] || set -- //:light_tests
# One test at a time: each loads TensorFlow.
bazel --batch --output_user_root="$work/bazel" test --jobs=2 --local_test_jobs=1 \
    --test_output=errors "$@"
