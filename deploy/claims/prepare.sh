#!/bin/sh
# The pairs of README.md: sh prepare.sh FOLDER, which holds the data sets as *.jsonl.gz, writes data/*.jsonl.
# Prompts of ethics_util are all the same and are left out: half the tokens.
set -eu
mkdir -p data
blank='s/^{"prompt": "[^"]*"/{"prompt": ""/'
gzip -dc "$1/ethics_util.train.jsonl.gz" | sed -n '1,4000p' | sed "$blank" > data/ethics.train.jsonl
gzip -dc "$1/ethics_util.train.jsonl.gz" | sed -n '4001,4400p' | sed "$blank" > data/ethics.dev.jsonl
gzip -dc "$1/ethics_util.val.jsonl.gz" | sed "$blank" > data/ethics.val.jsonl
gzip -dc "$1/ethics_util.ood_hard.jsonl.gz" | sed "$blank" > data/ethics.ood.jsonl
gzip -dc "$1/convarg.train.jsonl.gz" | awk 'NR % 3 == 1' > data/convarg.train.jsonl
gzip -dc "$1/convarg.train.jsonl.gz" | awk 'NR % 18 == 2' > data/convarg.dev.jsonl
gzip -dc "$1/convarg.val.jsonl.gz" > data/convarg.val.jsonl
gzip -dc "$1/convarg.ood_topics.jsonl.gz" > data/convarg.ood.jsonl
