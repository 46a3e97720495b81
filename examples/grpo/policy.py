"""A policy that is small enough to be made on the spot: no hub, no download.

A Llama of two layers, 64 wide, over whole words, learns to imitate a small grammar of everyday experiences, half of them
unpleasant. That is all it can say; what it says how often is what GRPO changes.
"""
from __future__ import annotations

import pathlib
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = ["What happened today ?", "What happened at work ?", "How was your weekend ?", "How was the trip ?"]
WHEN = ["Today", "Yesterday", "This morning", "Last week", "At work", "After lunch", "On the way home", "On my birthday"]
WHO = ["I", "my wife and I", "my son and I", "my best friend and I"]
EVENTS = [
    "won the lottery", "lost the keys", "found a perfect shell on the beach", "broke the old window", "ate a warm apple pie",
    "got a letter from the bank", "missed the last train", "heard our favorite song", "fell into the cold river",
    "danced in the kitchen", "waited three hours in the rain", "planted a small tree", "had an accident with the car",
    "saw a rainbow over the valley", "burned the dinner", "got a free ticket for the concert", "slept badly on the floor",
    "made a new friend", "dropped the phone in the lake", "finished the long report", "had a fight with the neighbor",
    "got a big raise", "watched the snow fall", "caught a bad cold", "painted the fence", "lost the job",
    "cooked soup for the whole family", "got bitten by a dog", "read a wonderful book", "paid a large fine",
]
CODAS = [
    "and it was wonderful", "and it was awful", "and nobody noticed", "and everyone laughed with us", "and then it hurt all night",
    "and it made me very happy", "and I cried the whole evening", "and the sun was shining", "and the food was spoiled",
    "and now everything is fine", "and now everything is broken", "but it was not so bad", "but it was too expensive",
]


def sentence(draw: random.Random) -> str:
    coda = draw.choice(["", " " + draw.choice(CODAS)])
    return f"{draw.choice(WHEN)} {draw.choice(WHO)} {draw.choice(EVENTS)}{coda} ."


def make(folder: pathlib.Path, seed: int = 0, steps: int = 300) -> float:
    """Writes the policy and its tokenizer into `folder`; returns the last loss, in nats a token."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    words = sorted({word for text in [*PROMPTS, *WHEN, *WHO, *EVENTS, *CODAS] for word in text.split()} | {"."})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
                                        padding_side="left")
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=None, pad_token_id=0, eos_token_id=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        texts = [f"{draw.choice(PROMPTS)} {sentence(draw)} <eos>" for _ in range(64)]
        batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        loss = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss.item()
