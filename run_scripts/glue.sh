#!/usr/bin/env bash
# GLUE.  run_scripts/glue.sh {train|evaluate} {nano|tiny|medium|base|large|huge} TASK [DATA] [any fairseq flag]
#   TASK          cola, mnli, mrpc, qnli, qqp, rte or sst2
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official names); default dataset/glue_data
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
TASK=${3:-}
SAVE=${SAVE:-$PWD/checkpoints/${TASK}_${2:-}} RESULTS=${RESULTS:-$PWD/results/${TASK}_${2:-}}
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh" "${@:1:2}" "${@:4}"

# The official scripts (for large; the other sizes take them too) try learning rates 3e-5 to 1e-4, 5, 7 and 10 epochs and
# up to three batches: these lie in the middle of what they try.
METRIC=acc
case $TASK in # rows an update, rows of a batch, updates between validations
  cola) TOTAL=64 EACH=16 EVERY=10 METRIC=mcc ;;
  mrpc) TOTAL=64 EACH=16 EVERY=10 ;;
  rte) TOTAL=64 EACH=8 EVERY=10 ;;
  sst2) TOTAL=128 EACH=16 EVERY=50 ;;
  qnli) TOTAL=256 EACH=8 EVERY=500 ;;
  mnli | qqp) TOTAL=256 EACH=8 EVERY=1000 ;;
  *) usage "TASK $TASK: one of cola mnli mrpc qnli qqp rte sst2" ;;
esac
need_data glue_data

case $SIZE in
  nano) TOTAL=64 EACH=64 RECIPE=(--lr 5e-4 --max-epoch 10) ;;
  *)
    RECIPE=(--lr 5e-5 --max-epoch 7 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 --fp16-init-scale 16
      --validate-interval-updates "$EVERY" --save-interval-updates "$EVERY" --keep-interval-updates 1)
    ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train "$TASK" "${BATCH[@]}" "${RECIPE[@]}" --prompt-type src --label-smoothing 0.0 \
      --warmup-ratio 0.06 --max-src-length 512 --max-tgt-length 30 \
      --train-subset "$(subset "${TASK}_train" train)" --valid-subset "$(subset "${TASK}_dev" valid)" \
      --best-checkpoint-metric "$METRIC" --maximize-best-checkpoint-metric
    ;;
  evaluate) # the prompt is the checkpoint's
    generate "$TASK" "${SUBSET:-$(subset "${TASK}_test" test)}" --batch-size 16
    ;;
  *) usage "VERB $VERB: train or evaluate" ;;
esac
