#!/usr/bin/env bash
# Visual entailment.  run_scripts/snli_ve.sh {train|evaluate|zeroshot} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official names); default dataset/snli_ve_data
#   PREMISE=      image (default), or caption for the official recipe, in which the picture's caption is a premise too
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate, for zeroshot a pretrained one;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data snli_ve_data

LARGE=(--patch-image-size 480 --prompt-type prev_output)
case ${PREMISE:-image} in
  image) CAPTION=() ;;
  caption) CAPTION=(--add-caption) ;;
  *) usage "PREMISE=$PREMISE: image or caption" ;;
esac

# The official rows are base and large; the other sizes take the one that is nearest.
case $SIZE in
  nano) TOTAL=32 EACH=32 RECIPE=(--lr 5e-4 --max-epoch 10 --patch-image-size 128) ;;
  tiny | medium | base)
    TOTAL=256 EACH=8
    RECIPE=(--lr 5e-5 --max-epoch 5 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 "${LARGE[@]}")
    ;;
  large | huge)
    TOTAL=256 EACH=8
    RECIPE=(--lr 2e-5 --max-epoch 6 --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2 "${LARGE[@]}")
    ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train snli_ve "${BATCH[@]}" "${RECIPE[@]}" ${CAPTION[@]+"${CAPTION[@]}"} --label-smoothing 0.0 \
      --warmup-ratio 0.06 --max-src-length 80 --max-tgt-length 20 \
      --train-subset "$(subset snli_ve_train train)" --valid-subset "$(subset snli_ve_dev valid)" \
      --best-checkpoint-metric snli_score --maximize-best-checkpoint-metric
    ;;
  evaluate) # premise and prompt are the checkpoint's
    generate snli_ve "${SUBSET:-$(subset snli_ve_test test)}" --batch-size 16
    ;;
  zeroshot) # of the picture alone
    generate snli_ve "${SUBSET:-$(subset snli_ve_test test)}" --batch-size 8 --prompt-type prev_output \
      --patch-image-size "$(pretrained 384)"
    ;;
  *) usage "VERB $VERB: train, evaluate or zeroshot" ;;
esac
