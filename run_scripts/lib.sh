# What the run scripts share: arguments, launcher, optimiser. Sourced by them, not run.
#   VERB SIZE [DATA] [any fairseq flag]; the flags come last in the command, so they win.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { # the header comment of the script that was called, then whatever is wrong
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  [[ $# -eq 0 ]] || echo "error: $*" >&2
  exit 2
}

[[ ${1:-} != -h && ${1:-} != --help ]] || usage
[[ $# -ge 2 ]] || usage "VERB and SIZE are needed"
VERB=$1 SIZE=$2
shift 2
case $SIZE in nano | tiny | medium | base | large | huge) ;; *) usage "SIZE $SIZE: one of nano tiny medium base large huge" ;; esac
DATA=
if [[ $# -gt 0 && $1 != -* ]]; then
  DATA=$1
  shift
fi
FLAGS=("$@")

PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
[[ -x $PYTHON ]] || PYTHON=$(command -v "$PYTHON" || command -v python3)
if [[ -z ${GPUS:-} ]]; then
  GPUS=$( (nvidia-smi -L 2>/dev/null || true) | wc -l)
fi
GPUS=$((GPUS)) # wc pads with spaces on some systems
SAVE=${SAVE:-$PWD/checkpoints/$(basename "$0" .sh)_$SIZE}
RESULTS=${RESULTS:-$PWD/results/$(basename "$0" .sh)_$SIZE}

go() { # go COMMAND...: runs it, or with DRY=1 prints it quoted for a shell
  if [[ ${DRY:-0} != 0 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

need_data() { # need_data FOLDER: DATA, or where the official layout has it
  DATA=${DATA:-$ROOT/dataset/$1}
  [[ -e ${DATA%%,*} || ${DRY:-0} != 0 ]] || usage "$DATA: no such data; name a folder with train.tsv and valid.tsv, or TSV files"
}

subset() { # subset OFFICIAL PLAIN: the official name of a split where DATA has that file, else ours
  if [[ -f $DATA/$1.tsv ]]; then echo "$1"; else echo "$2"; fi
}

batch() { # batch TOTAL EACH: EACH rows at a time on every device, as often as makes TOTAL rows an update
  local devices=$((GPUS > 0 ? GPUS : 1)) each=$2
  local times=$(($1 / (each * devices)))
  BATCH=(--batch-size "$each" --update-freq "$((times > 0 ? times : 1))")
}

vocabulary() { # fills VOCABULARY; a checkpoint that is evaluated has its own
  [[ -n ${BPE_DIR:-} ]] || usage "BPE_DIR is not set: the folder with the vocabulary (ofa train-bpe makes one)"
  VOCABULARY=(--bpe-dir "$BPE_DIR")
  if [[ $SIZE == nano ]]; then
    VOCABULARY+=(--bpe sentencepiece --num-bins 100 --code-dict-size 256)
  else
    VOCABULARY+=(--bpe gpt2 --num-bins 1000)
  fi
}

start() { # fills START: from INIT's weights, or from scratch
  if [[ -n ${INIT:-} ]]; then
    [[ -f $INIT || ${DRY:-0} != 0 ]] || usage "INIT=$INIT: no such checkpoint"
    START=(--finetune-from-model "$INIT")
  else
    echo "INIT is not set: training ofa_$SIZE from scratch" >&2
    START=()
  fi
}

device() { # fills DEVICE
  if ((GPUS > 0)); then
    DEVICE=(--fp16 --fp16-scale-window 512 --find-unused-parameters)
  else
    DEVICE=(--cpu)
  fi
}

train() { # train TASK FLAGS...: the flags every recipe shares (official run_scripts), then the task's, then the user's
  local task=$1
  shift
  vocabulary
  start
  device
  go "$PYTHON" -m fairseq_cli.train "$DATA" --user-dir "$ROOT/ofa_plugin" --task "$task" --arch "ofa_$SIZE" \
    "${VOCABULARY[@]}" ${START[@]+"${START[@]}"} "${DEVICE[@]}" --save-dir "$SAVE" \
    --criterion adjust_label_smoothed_cross_entropy --label-smoothing 0.1 \
    --optimizer adam --adam-betas '(0.9,0.999)' --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0 \
    --lr-scheduler ofa_polynomial_decay --dropout 0.1 --attention-dropout 0.0 --resnet-drop-path-rate 0.0 \
    --fixed-validation-seed 7 --num-workers 2 --log-format simple --log-interval 10 \
    --no-epoch-checkpoints --keep-best-checkpoints 1 "$@" ${FLAGS[@]+"${FLAGS[@]}"}
}

generate() { # generate TASK SUBSET FLAGS...: CKPT answers a subset; vocabulary and picture size are the checkpoint's
  local task=$1 subset=$2
  shift 2
  [[ -n ${CKPT:-} ]] || usage "CKPT is not set: the checkpoint to evaluate"
  [[ -f $CKPT || ${DRY:-0} != 0 ]] || usage "CKPT=$CKPT: no such checkpoint"
  local bpe=() cpu=()
  [[ -z ${BPE_DIR:-} ]] || bpe=(--bpe-dir "$BPE_DIR")
  ((GPUS > 0)) || cpu=(--cpu)
  go "$PYTHON" -m fairseq_cli.generate "$DATA" --user-dir "$ROOT/ofa_plugin" --task "$task" --path "$CKPT" \
    ${bpe[@]+"${bpe[@]}"} ${cpu[@]+"${cpu[@]}"} --gen-subset "$subset" --results-path "$RESULTS" --num-workers 2 \
    "$@" ${FLAGS[@]+"${FLAGS[@]}"}
}
