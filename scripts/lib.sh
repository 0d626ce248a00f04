# Sourced by scripts/demo, scripts/learn, scripts/test and scripts/check: brings a machine to where they can run.
#
# Nothing here starts a service, removes a package or writes into the system's Python. What is in place
# already is left alone, so that a second run takes a fraction of a second.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
STARTED=$SECONDS

say() {
    printf '\033[1m==>\033[0m %s\n' "$*" >&2
}

warn() {
    printf 'warning: %s\n' "$*" >&2
}

# stop WHAT FIX: what is missing, and what to do about it.
stop() {
    printf 'error: %s\n       %s\n' "$1" "$2" >&2
    exit 1
}

is_root() {
    [[ $EUID -eq 0 ]]
}

require_linux() {
    [[ $(uname -s) == Linux ]] || stop "linkspan needs Linux, and this is $(uname -s)" \
        "run it in a virtual machine with Debian 13 or Ubuntu 24.04"
}

require_root() {
    is_root || stop "$1 makes network namespaces, and that needs root" "sudo $1"
}

# ---------------------------------------------------------------- packages

installed() {
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# missing LIST: the lines of the list of which no package is there.
missing() {
    local line name found names
    while read -r line; do
        [[ -z $line || $line == \#* ]] && continue
        found=
        IFS='|' read -ra names <<<"$line"
        for name in "${names[@]}"; do
            if installed "$name"; then
                found=1
            fi
        done
        [[ -n $found ]] || printf '%s\n' "$line"
    done <"$1"
}

# offered "a|b": the first of them that apt has, because releases differ; a if it has none.
offered() {
    local name names
    IFS='|' read -ra names <<<"$1"
    for name in "${names[@]}"; do
        if apt-cache show "$name" >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
    done
    printf '%s\n' "${names[0]}"
}

POLICY=/usr/sbin/policy-rc.d
POLICY_IS_OURS=

remove_policy() {
    [[ -z $POLICY_IS_OURS ]] || rm -f "$POLICY"
    POLICY_IS_OURS=
}

# service_of PACKAGE: what Debian calls the service that a package enables.
service_of() {
    case $1 in
    bird2) echo bird ;;
    charon-systemd) echo strongswan ;;
    openssh-server) echo ssh ;;
    *) echo "$1" ;;
    esac
}

# apt_install NAME.. ("a|b": any of them): without starting, or enabling for the next boot, what it brings.
apt_install() {
    local log name names=()
    say "installing $# package(s): $*"
    if [[ ! -e $POLICY ]]; then
        POLICY_IS_OURS=1
        trap remove_policy EXIT
        printf '#!/bin/sh\nexit 101\n' >"$POLICY"
        chmod 755 "$POLICY"
    fi
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    apt-get -q update </dev/null >"$log" 2>&1 || true # without it, installing fails and says why
    for name in "$@"; do
        names+=("$(offered "$name")")
    done
    if ! apt-get -q -y --no-remove --no-install-recommends install "${names[@]}" </dev/null >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        stop "apt-get could not install $*" "the lines above say why (no network? a held package?); the whole log: $log"
    fi
    rm -f "$log"
    remove_policy
    for name in "${names[@]}"; do
        case $name in
        bird2 | charon-systemd | containerd | firewalld | frr | openssh-server | openvswitch-switch | prometheus)
            # Debian enables them for the next boot; the tests start their own, in namespaces of their own.
            if command -v systemctl >/dev/null; then
                systemctl --quiet disable "$(service_of "$name")" 2>/dev/null || true
            fi
            ;;
        esac
    done
}

# packages LIST: installs what is missing of the list, or says why it cannot.
packages() {
    local names
    mapfile -t names < <(command -v dpkg-query >/dev/null && missing "$1")
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        warn "no apt here: install by hand what $(basename "$1") lists: $(grep -v '^#' "$1" | tr '\n' ' ')"
        return
    fi
    [[ ${#names[@]} -gt 0 ]] || return 0
    is_root || stop "these packages are missing: ${names[*]}" "sudo apt-get install ${names[*]%%|*}"
    apt_install "${names[@]}"
}

# ---------------------------------------------------------------- Python

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# find_python: sets PYTHON to the first Python of 3.11 or later.
find_python() {
    local name
    for name in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            PYTHON=$(command -v "$name")
            return
        fi
    done
    if is_root && command -v apt-get >/dev/null && ! command -v /usr/bin/python3 >/dev/null; then
        apt_install python3 python3-venv
        PYTHON=/usr/bin/python3
        new_enough "$PYTHON" && return
    fi
    stop "no Python 3.11 or later was found" "apt-get install python3 (Debian 12 and later, Ubuntu 24.04 and later)"
}

# python_venv: makes sure that PYTHON can make virtual environments (Debian parts that from python3).
python_venv() {
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null && return
    if is_root && command -v apt-get >/dev/null && [[ $PYTHON == /usr/bin/* ]]; then
        apt_install python3-venv
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null && return
    fi
    stop "$PYTHON cannot make a virtual environment" "sudo apt-get install python3-venv"
}

# stamp NAME: what the environment is made of; another text means that it has to be made again.
stamp() {
    (
        cd "$ROOT" || exit
        printf '%s\n%s\n' "$ROOT" "$1"
        "$VENV/bin/python" -V
        sha256sum pyproject.toml requirements-test.txt
        [[ ! -f hatch_build.py ]] || sha256sum hatch_build.py
    ) | sha256sum | cut -d ' ' -f 1
}

# usable: whether .venv is there, was made for this folder (it cannot be moved) and still has its Python.
usable() {
    [[ -f $VENV/root && $(<"$VENV/root") == "$ROOT" ]] && new_enough "$VENV/bin/python" &&
        "$VENV/bin/python" -c 'import pip' 2>/dev/null
}

pip_install() {
    local log
    log=$(mktemp)
    if ! "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        stop "pip could not install $*" "the lines above say why (no network?); the whole log: $log"
    fi
    rm -f "$log"
}

# environment demo|test: the virtual environment, with linkspan in it (editable).
environment() {
    local kind=$1
    if usable; then
        if [[ -x $VENV/bin/linkspan && -f $VENV/stamp-$kind && $(<"$VENV/stamp-$kind") == "$(stamp "$kind")" ]]; then
            return
        fi
    else
        find_python
        python_venv
        say "making a virtual environment in .venv, with $("$PYTHON" -V) of $PYTHON"
        rm -rf "$VENV"
        "$PYTHON" -m venv "$VENV" || stop "$PYTHON -m venv $VENV failed" "the lines above say why"
        printf '%s' "$ROOT" >"$VENV/root"
    fi
    rm -f "$VENV"/stamp-*
    if [[ $kind == test ]]; then
        say "installing what the tests need (requirements-test.txt)"
        # The first import compiles what is needed. All of it would take half of the time.
        pip_install --no-compile -r "$ROOT/requirements-test.txt"
    else
        say "installing what the build needs"
        pip_install -c "$ROOT/requirements-test.txt" hatchling editables
    fi
    say "installing linkspan (editable)"
    pip_install --no-build-isolation -c "$ROOT/requirements-test.txt" -e "$ROOT"
    [[ $kind != test ]] || stamp demo >"$VENV/stamp-demo"
    stamp "$kind" >"$VENV/stamp-$kind"
    give_back
    say "set up in $((SECONDS - STARTED)) s"
}

# give_back: what root has made in somebody's checkout belongs to that somebody, who runs scripts/check next.
give_back() {
    local name
    is_root && [[ $(stat -c %u "$ROOT") != 0 ]] || return 0
    for name in .venv .mypy_cache .ruff_cache; do
        [[ ! -e $ROOT/$name ]] || chown -h -R --reference="$ROOT" "$ROOT/$name"
    done
}

# on_path: `linkspan` for this shell, and for root also /usr/local/bin/linkspan where that is free or ours.
on_path() {
    local link=/usr/local/bin/linkspan target
    PATH=$VENV/bin:$PATH
    export PATH
    is_root && [[ -d /usr/local/bin && -w /usr/local/bin ]] || return 0
    if [[ -L $link ]]; then
        target=$(readlink "$link")
        [[ $target != "$VENV/bin/linkspan" ]] || return 0
        if [[ $target != */.venv/bin/linkspan ]]; then
            warn "$link leads to $target and is left as it is; this checkout's is $VENV/bin/linkspan"
            return 0
        fi
    elif [[ -e $link ]]; then
        warn "$link is not of this checkout and is left as it is; this checkout's is $VENV/bin/linkspan"
        return 0
    fi
    ln -sfn "$VENV/bin/linkspan" "$link"
}
