#!/usr/bin/env bash
# Image classification.  run_scripts/image_classify.sh {train|evaluate} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official names); default dataset/imagenet_1k_data
#   ANSWERS=      the classes: text, JSON or the official class2label_new.pkl; default: that beside DATA, else classes.txt
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data imagenet_1k_data

# The official row, for 1000 classes, is large; the other sizes take it.
TOTAL=256 EACH=4
RECIPE=(--lr 5e-5 --max-update 160000 --warmup-updates 1000 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1
  --patch-image-size 480 --freeze-encoder-embedding --freeze-decoder-embedding)
[[ $SIZE != nano ]] || TOTAL=64 EACH=64 RECIPE=(--lr 1e-3 --max-epoch 20 --warmup-ratio 0.06 --patch-image-size 64)

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train image_classify "${BATCH[@]}" "${RECIPE[@]}" --ans2label-file "$(answers class2label_new.pkl classes.txt)" \
      --imagenet-default-mean-and-std --max-src-length 128 --max-tgt-length 30 \
      --train-subset "$(subset imagenet_1k_train train)" --valid-subset "$(subset imagenet_1k_val_subset valid)" \
      --best-checkpoint-metric score --maximize-best-checkpoint-metric
    ;;
  evaluate) # the classes are the checkpoint's, unless ANSWERS says otherwise
    generate image_classify "${SUBSET:-$(subset imagenet_1k_val test)}" --batch-size 8 \
      ${ANSWERS:+--ans2label-file "$ANSWERS"}
    ;;
  *) usage "VERB $VERB: train or evaluate" ;;
esac
