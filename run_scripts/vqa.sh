#!/usr/bin/env bash
# Visual question answering.  run_scripts/vqa.sh {train|evaluate|zeroshot} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official names); default dataset/vqa_data
#   ANSWERS=      the closed answer set: text, JSON or the official trainval_ans2label.pkl; default: the one beside DATA
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch
#   CKPT=         checkpoint to evaluate, for zeroshot a pretrained one, which answers freely;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data vqa_data

EVAL='{"beam": 5, "unnormalized": true, "temperature": 1.0}'
LARGE=(--patch-image-size 480 --freeze-encoder-embedding --freeze-decoder-embedding --max-src-length 80 --max-tgt-length 30
  --prompt-type prev_output --add-object --max-object-length 30
  --uses-ema --store-ema --ema-fp32 --ema-decay 0.9999 --ema-start-update 0)

# The official rows are base and large; the other sizes take the one that is nearest.
case $SIZE in
  nano) TOTAL=64 EACH=64 RECIPE=(--lr 1e-3 --max-epoch 10 --warmup-ratio 0.04 --patch-image-size 64) ;;
  tiny | medium | base)
    TOTAL=512 EACH=4
    RECIPE=(--lr 5e-5 --max-epoch 15 --warmup-ratio 0.04 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 "${LARGE[@]}")
    ;;
  large | huge)
    TOTAL=512 EACH=4
    RECIPE=(--lr 5e-5 --max-update 40000 --warmup-updates 1000 --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2 "${LARGE[@]}")
    ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train vqa_gen "${BATCH[@]}" "${RECIPE[@]}" --ans2label-file "$(answers trainval_ans2label.pkl answers.txt)" \
      --train-subset "$(subset vqa_train train)" --valid-subset "$(subset vqa_val valid)" \
      --val-inference-type beamsearch --eval-args "$EVAL" \
      --best-checkpoint-metric vqa_score --maximize-best-checkpoint-metric
    ;;
  evaluate) # the answer set is the checkpoint's, unless ANSWERS says otherwise
    generate vqa_gen "${SUBSET:-$(subset vqa_test test)}" --batch-size 16 --eval-args "$EVAL" \
      ${ANSWERS:+--ans2label-file "$ANSWERS"}
    ;;
  zeroshot)
    generate vqa_gen "${SUBSET:-$(subset vqa_test test)}" --batch-size 16 --unconstrained-training --prompt-type none \
      --patch-image-size "$(pretrained 480)" --eval-args "${EVAL/5/20}"
    ;;
  *) usage "VERB $VERB: train, evaluate or zeroshot" ;;
esac
