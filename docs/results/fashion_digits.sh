#!/usr/bin/env bash
# Trains 5 seeds of the thesis's two small networks on FashionMNIST and on digits, prunes them in every way, and writes the report to
# docs/results/fashion_digits/. Run it from the repository's root; it goes on where it was interrupted.
#
#   bash docs/results/fashion_digits.sh
set -euo pipefail

train() { # network, data set, config, epochs, further options
    local network=$1 data=$2 config=$3 epochs=$4
    shift 4
    for seed in 0 1 2 3 4; do
        local home=runs/fashion_digits/${network}_${data}/$seed
        if ! compgen -G "$home/*/checkpoints/best.ckpt" >/dev/null; then
            mlprank fit --config "configs/thesis/$config.yaml" --seed_everything "$seed" --trainer.callbacks null \
                --trainer.max_epochs "$epochs" --trainer.default_root_dir "$home" --data "${data}DataModule" \
                --data.batch_size 64 --model.optimizer.init_args.lr 0.001 "$@"
        fi
    done
}

train TwoLayerMLP FashionMNIST two_layer_mnist 8
train ThreeLayerMLP FashionMNIST three_layer_fashion_mnist 8
train TwoLayerMLP Digits two_layer_mnist 30 --model.model.init_args.in_features 64
train ThreeLayerMLP Digits three_layer_fashion_mnist 30 --model.model.init_args.in_features 64

mlprank experiment --config configs/experiments/fashion_digits.yaml
mlprank report runs/experiments/fashion_digits --out docs/results/fashion_digits --pictures accuracy latency
rm -r docs/results/fashion_digits/{report.html,tables} # for looking at: mlprank report runs/experiments/fashion_digits makes them
