#!/usr/bin/env bash
# Reading text.  run_scripts/ocr.sh {train|evaluate} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official ocr_scene_test.tsv); default dataset/ocr_data
#   BPE_DIR=      vocabulary for training: the official folder, with `--bpe bert` behind DATA the Chinese one
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data ocr_data

EVAL='{"beam": 5, "max_len_b": 64, "no_repeat_ngram_size": 0}'

LARGE=(--max-epoch 10 --patch-image-size 480)

# The official scripts evaluate only; training takes the official numbers of referring expressions, base and large.
case $SIZE in
  nano) TOTAL=32 EACH=32 RECIPE=(--lr 1e-3 --max-epoch 20 --patch-image-size 256) ;;
  tiny | medium | base) TOTAL=128 EACH=8 RECIPE=(--lr 5e-5 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 "${LARGE[@]}") ;;
  large | huge) TOTAL=128 EACH=8 RECIPE=(--lr 3e-5 --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2 "${LARGE[@]}") ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train ocr "${BATCH[@]}" "${RECIPE[@]}" --warmup-ratio 0.06 --max-src-length 80 --max-tgt-length 64 \
      --train-subset train --valid-subset valid \
      --eval-args "$EVAL" --best-checkpoint-metric acc --maximize-best-checkpoint-metric
    ;;
  evaluate)
    generate ocr "${SUBSET:-$(subset ocr_scene_test test)}" --batch-size 8 --eval-args "$EVAL"
    ;;
  *) usage "VERB $VERB: train or evaluate" ;;
esac
