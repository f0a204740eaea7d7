#!/usr/bin/env bash
# Image captioning.  run_scripts/caption.sh {train|train-scst|evaluate} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with train.tsv, valid.tsv, test.tsv (or the official names); default dataset/caption_data
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to fine-tune; without it from scratch. For train-scst that of train, and needed
#   DF=           train-scst: document frequencies (ofa cider-df); without it those of the training file
#   CKPT=         checkpoint to evaluate;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data caption_data

EVAL='{"beam": 5, "max_len_b": 16, "no_repeat_ngram_size": 3}'
LARGE=(--patch-image-size 480 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 --freeze-encoder-embedding
  --freeze-decoder-embedding --validate-interval-updates 500 --save-interval-updates 500 --keep-interval-updates 1)

# Official stage 1 (cross-entropy) exists for base and large; the other sizes take the row that is nearest.
case $SIZE in
  nano) TOTAL=64 EACH=64 RECIPE=(--lr 1e-3 --max-epoch 20 --patch-image-size 64) ;;
  tiny | medium | base) TOTAL=128 EACH=8 RECIPE=(--lr 1e-5 --max-epoch 5 --drop-worst-ratio 0.2 --drop-worst-after 6000 "${LARGE[@]}") ;;
  large | huge) TOTAL=128 EACH=8 RECIPE=(--lr 1e-5 --max-epoch 2 --drop-worst-ratio 0.2 --drop-worst-after 2500 "${LARGE[@]}") ;;
esac

case $VERB in
  train)
    batch "$TOTAL" "$EACH"
    train caption "${BATCH[@]}" "${RECIPE[@]}" --warmup-ratio 0.06 --max-src-length 80 --max-tgt-length 20 \
      --train-subset "$(subset caption_stage1_train train)" --valid-subset "$(subset caption_val valid)" \
      --eval-cider --eval-args "$EVAL" --best-checkpoint-metric cider --maximize-best-checkpoint-metric
    ;;
  train-scst)
    [[ -n ${INIT:-} ]] || usage "INIT is not set: train-scst goes on from the checkpoint of train"
    case $SIZE in # official stage 2 exists for base and large
      nano) EACH=32 RECIPE=(--lr 1e-5 --patch-image-size 64) ;;
      tiny | medium | base) EACH=2 RECIPE=(--lr 1e-5 --patch-image-size 480) ;;
      large | huge) EACH=2 RECIPE=(--lr 1e-5 --end-learning-rate 2e-7 --patch-image-size 480) ;;
    esac
    [[ -z ${DF:-} ]] || RECIPE+=(--scst-cider-cached-tokens "$DF")
    CRITERION=(--criterion scst_reward_criterion --scst --scst-args "$EVAL")
    batch 64 "$EACH"
    train caption "${BATCH[@]}" "${RECIPE[@]}" --max-epoch 3 --warmup-ratio 0.06 --max-src-length 80 --max-tgt-length 20 \
      --dropout 0 --encoder-drop-path-rate 0 --decoder-drop-path-rate 0 \
      --train-subset "$(subset caption_stage2_train train)" --valid-subset "$(subset caption_val valid)" \
      --eval-cider --eval-args "$EVAL" --best-checkpoint-metric cider --maximize-best-checkpoint-metric
    ;;
  evaluate)
    generate caption "${SUBSET:-$(subset caption_test test)}" --batch-size 16 --eval-args "$EVAL"
    ;;
  *) usage "VERB $VERB: train, train-scst or evaluate" ;;
esac
