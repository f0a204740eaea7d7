#!/usr/bin/env bash
# Makes the Python environment VENV, or brings it up to date; does nothing where it is ready.
#   .ci/install.sh VENV             with this checkout in it (editable) and the tools of the tests
#   .ci/install.sh VENV FILE.whl    with the built package in it, and nothing of the checkout
# PYTHON=python3.12 takes another Python. TORCH="torch==2.13.0 --index-url URL" takes another build of torch.
set -euo pipefail

VENV=${1:?usage: .ci/install.sh VENV [FILE.whl]}
WHEEL=${2:-}
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

version() { "$1" -c 'import sys; print(sys.version_info[:3])' 2>/dev/null || echo none; }
recipe() { # changes when anything that decides the contents changes
  { echo "$TORCH"; version "$PYTHON"; cat "$ROOT/.ci/install.sh" "$ROOT/setup.py" "$ROOT/pyproject.toml"; } | cksum
}

STAMP="$VENV/.installed"
if [[ -z $WHEEL && -f $STAMP && $(recipe) == "$(<"$STAMP")" ]]; then
  exit 0
fi
rm -f "$STAMP"

"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
  { echo "error: $PYTHON is $("$PYTHON" --version 2>&1); name a Python of 3.10 to 3.13: make test PYTHON=python3.12" >&2; exit 1; }
echo "== environment $VENV: $("$PYTHON" --version), $TORCH and fairseq without its C++ extensions (a minute or two)"
if [[ $(version "$VENV/bin/python") == "$(version "$PYTHON")" ]]; then
  "$PYTHON" -m venv "$VENV"
else
  "$PYTHON" -m venv --clear "$VENV"
fi
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

TOOLS=()
[[ -n $WHEEL ]] || TOOLS=(pytest pytest-xdist hypothesis ruff tensorboard safetensors pycocotools)
# Torch first: fairseq's build reads it. fairseq last and without dependencies: it asks for a compiler's parts and for
# torchaudio, which nothing here uses, and pip would report them as conflicts after every later install.
# shellcheck disable=SC2086  # TORCH may hold options
pip install -qq $TORCH numpy "setuptools>=77,<81" wheel
pip install -qq hydra-core==1.3.2 omegaconf==2.3.0 tqdm regex bitarray scikit-learn sacrebleu sentencepiece pillow \
  ${TOOLS[@]+"${TOOLS[@]}"}
READTHEDOCS=1 pip install -qq --no-build-isolation --no-deps fairseq-fixed==0.12.3.1
if [[ -n $WHEEL ]]; then
  pip install -qq --no-deps --force-reinstall "$WHEEL"
else
  pip install -qq --no-build-isolation --no-deps -e "$ROOT"
  recipe >"$STAMP"
fi
