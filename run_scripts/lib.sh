# What the run scripts share: arguments, launcher, optimiser. Sourced by them, not run.
#   VERB SIZE [DATA] [any fairseq flag]; the flags come last in the command, so they win.
# Where it runs (docs/distributed.md):
#   GPUS=N        GPUs of this host, default all; 0: one process on the CPU
#   PROCS=N       N processes on the CPU of this host
#   NODES= NODE_RANK= MASTER= PORT=   several hosts: how many, which one this is (from 0), the host of number 0, a port
# shellcheck shell=bash
# shellcheck disable=SC2034  # BATCH and VERB are for the scripts
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

STAGE= # of training in several: each in a folder of its own, since one with a checkpoint_last.pt would go on from it
[[ $VERB != train-* ]] || STAGE=${VERB#train}
SAVE=${SAVE:-$PWD/checkpoints/$(basename "$0" .sh)${STAGE}_$SIZE}
RESULTS=${RESULTS:-$PWD/results/$(basename "$0" .sh)_$SIZE}

# ---- where it runs ---------------------------------------------------------------------------------------------------

if [[ -n ${PROCS:-} ]]; then
  ((${GPUS:-0} == 0)) || usage "PROCS=$PROCS is for the CPU and GPUS=$GPUS for GPUs: give one of them"
  GPUS=0
elif [[ -n ${CUDA_VISIBLE_DEVICES+set} && -z ${GPUS:-} ]]; then
  GPUS=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
fi
GPUS=${GPUS:-$( (nvidia-smi -L 2>/dev/null || true) | wc -l)}
GPUS=$((GPUS)) # wc pads with spaces on some systems
PROCS=${PROCS:-1} NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-} MASTER=${MASTER:-} PORT=${PORT:-}
LOCAL=$((GPUS > 0 ? GPUS : PROCS)) # processes of this host
WORLD=$((LOCAL * NODES))
((WORLD > 0)) || usage "PROCS=$PROCS NODES=$NODES: at least 1 each"

if ((NODES > 1)); then
  [[ $NODE_RANK =~ ^[0-9]+$ ]] || usage "NODES=$NODES needs NODE_RANK, the number of this host from 0 to $((NODES - 1))"
  ((NODE_RANK < NODES)) || usage "NODE_RANK=$NODE_RANK: NODES=$NODES are numbered from 0 to $((NODES - 1))"
  [[ -n $MASTER ]] || usage "NODES=$NODES needs MASTER, the address of the host with NODE_RANK=0"
elif [[ ${RANK:-} && ${WORLD_SIZE:-1} != 1 ]]; then
  usage "torchrun has started $WORLD_SIZE of this script: start it once, GPUS or PROCS say how many processes it makes"
fi
if ((${SLURM_STEP_NUM_TASKS:-1} > 1 && ${SLURM_STEP_NUM_TASKS:-1} != NODES)); then
  usage "srun has started $SLURM_STEP_NUM_TASKS of this script for NODES=$NODES, as separate runs into one SAVE; see run_scripts/slurm.sbatch"
fi
NODE_RANK=${NODE_RANK:-0} MASTER=${MASTER:-localhost}

pretrained() { # pretrained PIXELS: the side of pictures that a pretrained checkpoint of this size answers
  if [[ $SIZE == nano ]]; then echo 128; else echo "$1"; fi
}

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

answers() { # answers OFFICIAL PLAIN: the answer set: ANSWERS, else the official file beside the data, else ours
  local folder=$DATA
  [[ -d $folder || $folder != *.tsv ]] || folder=$(dirname "${DATA%%,*}")
  if [[ -n ${ANSWERS:-} ]]; then
    echo "$ANSWERS"
  elif [[ -f $folder/$1 ]]; then
    echo "$folder/$1"
  else
    echo "$folder/$2"
  fi
}

batch() { # batch TOTAL EACH: an update of TOTAL rows, or a few less, from batches of at most EACH on every device
  local share=$(($1 / WORLD)) each
  ((share > 0)) || usage "an update has $1 rows, too few for $WORLD processes"
  ((share * WORLD == $1)) || echo "an update has $((share * WORLD)) rows, not $1, to share them among $WORLD processes" >&2
  each=$((share < $2 ? share : $2))
  while ((share % each)); do each=$((each - 1)); done
  BATCH=(--batch-size "$each" --update-freq "$((share / each))")
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

device() { # fills DEVICE: what every rank is told about where it runs
  DEVICE=(--cpu)
  ((GPUS == 0)) || DEVICE=(--fp16 --fp16-scale-window 512 --distributed-world-size "$WORLD")
  ((WORLD > 1)) || return 0
  meet
  # Always said, so that stock guesses nothing from what SLURM or torchrun has left in the environment.
  DEVICE+=(--distributed-init-method "tcp://$MASTER:$PORT")
  ((GPUS > 0)) || DEVICE+=(--distributed-world-size "$WORLD" --distributed-no-spawn --distributed-backend gloo
    --ddp-backend legacy_ddp)
}

meet() { # fills PORT and ENVIRONMENT, which the ranks need to find each other
  ENVIRONMENT=()
  if ((GPUS == 0)); then # as many threads as this host has cores, shared out
    local cores
    cores=$(getconf _NPROCESSORS_ONLN)
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > PROCS ? cores / PROCS : 1))}
    ENVIRONMENT+=("OMP_NUM_THREADS=$OMP_NUM_THREADS")
  elif ((NODES > 1)); then # stock starts a process on every GPU that it sees
    local seen=${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((GPUS - 1)))} wanted
    wanted=$(cut -d, -f"1-$GPUS" <<<"$seen")
    [[ $(tr ',' '\n' <<<"$wanted" | grep -c .) == "$GPUS" ]] || usage "GPUS=$GPUS, but CUDA_VISIBLE_DEVICES=$seen"
    ENVIRONMENT+=("CUDA_VISIBLE_DEVICES=$wanted")
  fi
  if ((NODES == 1)); then
    PORT=${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
    return
  fi
  PORT=${PORT:-$((10000 + ${SLURM_JOB_ID:-19500} % 50000))} # the same on all hosts
  local name=${GLOO_SOCKET_IFNAME:-${NCCL_SOCKET_IFNAME:-}}
  [[ -n $name ]] || name=$(interface)
  if [[ -n $name ]]; then
    ENVIRONMENT+=("GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$name}" "NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$name}")
  elif ((GPUS == 0)); then # NCCL looks for itself
    echo "GLOO_SOCKET_IFNAME is not set, and which interface of this host leads to the others cannot be seen here: set" \
      "it (for example to eth0) on every host, else gloo may offer them 127.0.0.1, and they wait for ever" >&2
  fi
}

interface() { # the network interface between this host and MASTER; nothing where that cannot be told
  command -v ip >/dev/null || return 0
  local address route own
  address=$(getent ahosts "$MASTER" 2>/dev/null | head -n 1 | cut -d' ' -f1 || true)
  route=$(ip -o route get "${address:-$MASTER}" 2>/dev/null || true)
  own=$(ip -o addr show to "${address:-$MASTER}" 2>/dev/null | head -n 1 | awk '{print $2}' || true)
  if ((NODE_RANK == 0)) && [[ -n $route && -z $own && $address != 127.* ]]; then
    usage "NODE_RANK=0 runs on MASTER, but $MASTER (${address:-unknown}) is no address of this host"
  elif [[ $address == 127.* && $MASTER != 127.* && $MASTER != localhost ]]; then
    return 0 # this host's own name, which its /etc/hosts gives to the loopback: says nothing about the others
  fi
  [[ -n $own ]] || own=$(sed -n 's/.* dev \([^ ]*\).*/\1/p' <<<"$route")
  echo "$own"
}

launch() { # launch MODULE ARGUMENTS...: one command that starts this host's processes, or on the CPU one for each rank
  local entry=("$PYTHON" -m "$1") first=$((NODE_RANK * LOCAL)) rank pids=() groups=()
  shift
  if ((WORLD == 1)); then
    go "${entry[@]}" "$@"
  elif ((GPUS > 0)); then
    go env ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} "${entry[@]}" "$@" --distributed-rank "$first"
  elif [[ ${DRY:-0} != 0 ]]; then
    for ((rank = first; rank < first + PROCS; rank++)); do
      go env "${ENVIRONMENT[@]}" "${entry[@]}" "$@" --distributed-rank "$rank"
    done
  else
    mkdir -p "$(dirname "$SAVE")"
    trap 'stop; exit 130' INT
    trap 'stop; exit 143' TERM HUP
    for ((rank = first; rank < first + PROCS; rank++)); do
      local command=("$PYTHON" -c "$OWN_GROUP" env "${ENVIRONMENT[@]}" "${entry[@]}" "$@" --distributed-rank "$rank")
      if ((rank == first)); then
        "${command[@]}" </dev/null &
      else
        "${command[@]}" </dev/null >"$(log "$rank")" 2>&1 &
      fi
      pids[rank]=$! groups[rank]=$!
    done
    watch_ranks
  fi
}

# A rank and its data workers can be ended together, and feel SIGINT, which bash hides from what it starts with &.
OWN_GROUP='import os, signal, sys
os.setsid()
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'

log() { # log RANK: the file with what it prints; the first rank of a host prints to the terminal
  echo "$SAVE.rank$1.log"
}

watch_ranks() { # waits for pids; when one fails the others are ended, and its error is the last thing to be read
  local failed=()
  while ((${#pids[@]} > 0 && ${#failed[@]} == 0)); do
    sleep 0.2
    reap
  done 2>/dev/null # bash would name the line of this file in which a rank was killed
  ((${#failed[@]} > 0)) || return 0
  {
    sleep 1 # a rank that lost the others may end before the one that was the reason
    reap
    stop
  } 2>/dev/null
  blame
}

reap() { # moves the ranks that have ended out of pids, and those that failed to failed, with their exit codes
  local rank code
  for rank in "${!pids[@]}"; do
    if ! kill -0 "${pids[rank]}" 2>/dev/null; then
      code=0
      wait "${pids[rank]}" 2>/dev/null || code=$?
      unset "pids[rank]"
      ((code == 0)) || failed[rank]=$code
    fi
  done
}

stop() { # ends every rank that still runs, and the data workers of all
  local pid patience=50
  for pid in "${groups[@]}"; do
    kill -TERM -- "-$pid" 2>/dev/null || true
  done
  for pid in "${groups[@]}"; do
    while kill -0 "$pid" 2>/dev/null && ((patience-- > 0)); do sleep 0.1; done
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  wait 2>/dev/null || true
}

blame() { # says which rank was the reason, and exits with its code; one that only lost another rank is not
  local first=$((NODE_RANK * PROCS)) ranks=("${!failed[@]}") guilty rank said code
  guilty=${ranks[0]}
  for rank in "${ranks[@]}"; do
    if [[ $rank != "$first" && $(reason "$rank") != *"another rank "* ]]; then
      guilty=$rank
      break
    fi
  done
  code=${failed[guilty]}
  said="see above"
  ((guilty == first)) || said=$(reason "$guilty")
  said="failed with exit code $code: ${said#*error: }"
  ((code != 137)) || said="was killed, as the system does when memory runs out"
  ((guilty == first)) || said+=" (all it printed: $(log "$guilty"))"
  echo "error: rank $guilty of $WORLD $said; the other ranks of this host were ended" >&2
  exit "$code"
}

reason() { # reason RANK: the error that it printed, else the last line
  grep -E '^(\[rank[0-9]+\]: |[a-z_.]+: )?error: ' "$(log "$1")" | tail -n 1 | grep . || grep . "$(log "$1")" | tail -n 1 || true
}

# ---- training and generating -----------------------------------------------------------------------------------------

CRITERION=(--criterion adjust_label_smoothed_cross_entropy --label-smoothing 0.1) # unless a recipe has another

train() { # train TASK FLAGS...: the flags every recipe shares (official run_scripts), then the task's, then the user's
  local task=$1
  shift
  vocabulary
  start
  device
  launch fairseq_cli.train "$DATA" --user-dir "$ROOT/ofa_plugin" --task "$task" --arch "ofa_$SIZE" \
    "${VOCABULARY[@]}" ${START[@]+"${START[@]}"} "${DEVICE[@]}" --save-dir "$SAVE" \
    "${CRITERION[@]}" \
    --optimizer adam --adam-betas '(0.9,0.999)' --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0 \
    --lr-scheduler ofa_polynomial_decay --dropout 0.1 --attention-dropout 0.0 --resnet-drop-path-rate 0.0 \
    --fixed-validation-seed 7 --num-workers 2 --log-format simple --log-interval 10 \
    --no-epoch-checkpoints --keep-best-checkpoints 1 "$@" ${FLAGS[@]+"${FLAGS[@]}"}
}

generate() { # generate TASK SUBSET FLAGS...: CKPT answers a subset; vocabulary and picture size are the checkpoint's
  local task=$1 subset=$2
  shift 2
  ((NODES == 1)) || usage "evaluate runs on one host: leave NODES out"
  [[ -n ${CKPT:-} ]] || usage "CKPT is not set: the checkpoint to evaluate"
  [[ -f $CKPT || ${DRY:-0} != 0 ]] || usage "CKPT=$CKPT: no such checkpoint"
  local bpe=() cpu=() several=()
  [[ -z ${BPE_DIR:-} ]] || bpe=(--bpe-dir "$BPE_DIR")
  ((GPUS > 0)) || cpu=(--cpu)
  ((WORLD == 1)) || several=(--distributed-world-size "$WORLD")
  go "$PYTHON" -m fairseq_cli.generate "$DATA" --user-dir "$ROOT/ofa_plugin" --task "$task" --path "$CKPT" \
    ${bpe[@]+"${bpe[@]}"} ${cpu[@]+"${cpu[@]}"} ${several[@]+"${several[@]}"} --gen-subset "$subset" --results-path "$RESULTS" --num-workers 2 \
    "$@" ${FLAGS[@]+"${FLAGS[@]}"}
}
