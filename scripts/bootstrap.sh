#!/bin/sh
# Create a virtual environment: bootstrap.sh PYTHON FOLDER. Installs what a bare Debian or Ubuntu lacks, where it may.
set -eu
python=$1
folder=$2

missing=""
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
command -v c++ >/dev/null || missing="$missing g++"
ldconfig -p 2>/dev/null | grep -q libusb-1.0 || missing="$missing libusb-1.0-0" # open3d loads it
ldconfig -p 2>/dev/null | grep -q libEGL_mesa || missing="$missing libegl1 libgl1-mesa-dri" # MuJoCo draws with it
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # shellcheck disable=SC2086 - a list of package names
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "missing system packages:$missing; install them (sudo apt-get install$missing) for a native renderer, meshes and films of simulations" >&2
    fi
fi
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
"$folder/bin/python" -c 'import sys; assert sys.version_info >= (3, 10), f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}"'
