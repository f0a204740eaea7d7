#!/usr/bin/env bash
# Object detection.  run_scripts/detection.sh {train|evaluate} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with train.tsv, valid.tsv, test.tsv, as `ofa prepare detection` writes it; default dataset/detection_data
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data detection_data

# There is no official recipe: batch and rates are those of referring expressions, base and large.
case $SIZE in
  nano) TOTAL=32 EACH=32 RECIPE=(--lr 1e-3 --max-epoch 60 --patch-image-size 128) ;;
  tiny | medium | base) TOTAL=128 EACH=8 RECIPE=(--lr 5e-5 --max-epoch 50 --patch-image-size 512 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1) ;;
  large | huge) TOTAL=128 EACH=8 RECIPE=(--lr 3e-5 --max-epoch 50 --patch-image-size 512 --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2) ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train detection "${BATCH[@]}" "${RECIPE[@]}" --warmup-ratio 0.06 --geometric-augment \
      --train-subset train --valid-subset valid --best-checkpoint-metric ap50 --maximize-best-checkpoint-metric
    ;;
  evaluate)
    generate detection "${SUBSET:-test}" --batch-size 16
    ;;
  *) usage "VERB $VERB: train or evaluate" ;;
esac
