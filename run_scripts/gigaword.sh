#!/usr/bin/env bash
# Summarisation.  run_scripts/gigaword.sh {train|evaluate} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official names); default dataset/gigaword_data
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data gigaword_data

EVAL='{"beam": 6, "lenpen": 0.7, "max_len_b": 32, "no_repeat_ngram_size": 3}'

# The official row is large; the other sizes take it too.
case $SIZE in
  nano) TOTAL=64 EACH=64 RECIPE=(--lr 1e-3 --max-epoch 10) ;;
  *)
    TOTAL=512 EACH=64
    RECIPE=(--lr 1e-4 --max-epoch 6 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1
      --validate-interval-updates 2500 --save-interval-updates 2500 --keep-interval-updates 1)
    ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train gigaword "${BATCH[@]}" "${RECIPE[@]}" --noise-ratio 0.2 --warmup-ratio 0.06 --max-src-length 512 --max-tgt-length 64 \
      --train-subset "$(subset gigaword_train train)" --valid-subset "$(subset gigaword_dev valid)" \
      --eval-rouge --eval-args "$EVAL" --best-checkpoint-metric rougeL_f1 --maximize-best-checkpoint-metric
    ;;
  evaluate)
    generate gigaword "${SUBSET:-$(subset gigaword_test test)}" --batch-size 32 --eval-args "$EVAL"
    ;;
  *) usage "VERB $VERB: train or evaluate" ;;
esac
