#!/usr/bin/env bash
# The region that a text describes.  run_scripts/refcoco.sh {train|evaluate|zeroshot} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   KIND=         refcoco (default), refcocoplus or refcocog
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official KIND_train.tsv, KIND_val.tsv); default dataset/KIND_data
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate, for zeroshot a pretrained one;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
KIND=${KIND:-refcoco} EPOCHS=10
case $KIND in
  refcoco | refcocoplus) ;;
  refcocog) EPOCHS=12 ;; # of base
  *) usage "KIND=$KIND: refcoco, refcocoplus or refcocog" ;;
esac
need_data "${KIND}_data"

# The official rows are base and large; the other sizes take the one that is nearest.
case $SIZE in
  nano) TOTAL=32 EACH=32 RECIPE=(--lr 1e-3 --max-epoch 30 --patch-image-size 128) ;;
  tiny | medium | base)
    TOTAL=128 EACH=8
    RECIPE=(--lr 5e-5 --max-epoch "$EPOCHS" --patch-image-size 512 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1)
    ;;
  large | huge)
    TOTAL=128 EACH=8
    RECIPE=(--lr 3e-5 --max-epoch 10 --patch-image-size 512 --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2)
    ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train refcoco "${BATCH[@]}" "${RECIPE[@]}" --warmup-ratio 0.06 --max-src-length 80 --max-tgt-length 20 \
      --train-subset "$(subset "${KIND}_train" train)" --valid-subset "$(subset "${KIND}_val" valid)" \
      --best-checkpoint-metric score --maximize-best-checkpoint-metric
    ;;
  evaluate)
    generate refcoco "${SUBSET:-$(subset "${KIND}_testA" test)}" --batch-size 16
    ;;
  zeroshot) # in the size of pretraining, not of fine-tuning
    generate refcoco "${SUBSET:-$(subset "${KIND}_testA" test)}" --batch-size 16 \
      --patch-image-size "$(pretrained 480)"
    ;;
  *) usage "VERB $VERB: train, evaluate or zeroshot" ;;
esac
