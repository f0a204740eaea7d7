#!/usr/bin/env bash
# The eight pretraining tasks.  run_scripts/pretrain.sh {train|evaluate} {nano|tiny|medium|base|large|huge} [DATA] [any fairseq flag]
#   DATA          folder with <subset>/{vision_language,text,image,detection}_examples.tsv and negative_sample/, as
#                 `ofa make-shapes` and `ofa prepare unify_task` write it, or with the official files; default dataset/pretrain_data
#   BPE_DIR=      vocabulary for training: the official BPE folder, for nano one made by `ofa train-bpe`
#   INIT=         checkpoint to go on from (a released one, or its text-only beginning); without it from scratch
#   CKPT=         checkpoint to evaluate;  SUBSET=test the split
#   SAVE= RESULTS=  folders to write;  DRY=1 prints the command
#   GPUS=N        GPUs, 0 forces the CPU;  PROCS=N processes on it;  NODES= NODE_RANK= MASTER= several hosts
# shellcheck source=run_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_data pretrain_data

# The official row is one for base and large; a batch is of 8 vision-language rows, since 4 cannot hold every file.
LARGE=(--lr 1e-4 --max-epoch 50 --warmup-ratio 0.01 --clip-norm 5.0 --patch-image-size 384 --max-image-size 512
  --code-image-size 128 --sample-patch-num 196 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1
  --save-interval-updates 6000 --keep-interval-updates 15 --fp16-scale-window 128)

case $SIZE in
  nano) # for `ofa make-shapes`, with a frozen --resnet-model-path; answers of two tokens would weigh little beside captions of twenty
    TOTAL=32 EACH=16 RECIPE=(--lr 1e-3 --max-update 2700 --adam-betas '(0.9,0.98)' --dropout 0
      --warmup-ratio 0.02 --hold-ratio 0.78 --no-rand-augment
      --patch-image-size 128 --max-image-size 128 --code-image-size 64 --mixture 8:1:1:4
      --kind-weights 'vqa=10,matching=6,grounding=3,region_caption=2,detection=4')
    ((GPUS > 0)) || RECIPE+=(--optimizer muon --muon-lr-scale 3 --autocast auto --num-workers 0) # muon not with --fp16
    ;;
  *) TOTAL=8 EACH=8 RECIPE=("${LARGE[@]}") ;;
esac

files() { # fills FILES: what is told of the official layout, whose files lie in DATA itself
  FILES=()
  [[ -f $DATA/vision_language_examples.tsv ]] || return 0
  for name in text image detection; do
    [[ ! -f $DATA/${name}_examples.tsv ]] || FILES+=("--$name-data" "$DATA/${name}_examples.tsv")
  done
  FILES+=(--neg-sample-dir "$DATA/negative_sample" --disable-validation)
  DATA=$DATA/vision_language_examples.tsv
}

case $VERB in
  train)
    batch "$((TOTAL > 8 * WORLD ? TOTAL : 8 * WORLD))" "$EACH"
    files
    train unify_task "${BATCH[@]}" "${RECIPE[@]}" --label-smoothing 0 --max-src-length 80 --max-tgt-length 30 \
      --train-subset train --valid-subset valid ${FILES[@]+"${FILES[@]}"}
    ;;
  evaluate)
    generate unify_task "${SUBSET:-test}" --batch-size 16
    ;;
  *) usage "VERB $VERB: train or evaluate" ;;
esac
