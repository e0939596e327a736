#!/bin/sh
# Creates a virtual environment from the lock: create_venv.sh PYTHON DIRECTORY LOCK
# Says in one sentence what is wrong where it cannot, and leaves no half of one.
set -eu
python=$1
directory=$2
lock=$3

fail() {
    echo "tff_perfedavg: $1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "$python was not found; install Python 3.10 or 3.11, or name one with 'make PYTHON=/path/to/python'."
version=$("$python" -c 'import platform; print(platform.python_version())') ||
    fail "$python does not run; name another Python with 'make PYTHON=/path/to/python'."
case $version in
3.10.* | 3.11.*) ;;
*) fail "Python $version is not supported, since TensorFlow Federated 0.87 needs Python 3.10 or 3.11; name one with 'make PYTHON=/path/to/python3.11'." ;;
esac
platform=$("$python" -c 'import platform; print(platform.system(), platform.machine())')
[ "$platform" = "Linux x86_64" ] ||
    fail "$platform is not supported, since TensorFlow Federated 0.87 is published for Linux x86_64 only."

"$python" -m venv "$directory" ||
    fail "$python could not create a virtual environment in $directory (on Debian and Ubuntu, install python3-venv)."
echo "Installing the packages of $lock into $directory; this takes a minute or two."
"$directory/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$lock"
