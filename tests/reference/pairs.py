"""Random preference pairs through `rewarm evaluate` and `rewarm score`, against trl 1.16.0 and transformers 5.23.0.

    python tests/reference/pairs.py --rewarm target/debug/rewarm --tokenizer DIR [--pairs 200] [--seed 0]

DIR holds tokenizer.json(.gz) and tokenizer_config.json of a model whose chat template knows tools and reasoning
(Qwen3's). A tiny reward model of that vocabulary is made; the prompt of each pair is what trl's `maybe_extract_prompt`
says, and the rewards are transformers' on `apply_chat_template(prompt + response, tools=.., **chat_template_kwargs)`.
"""

import argparse
import gzip
import json
import os
import pathlib
import random
import shutil
import subprocess
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import jinja2
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification
from trl.data_utils import maybe_extract_prompt

torch.set_num_threads(1)

WORDS = "tide Porto noon 1.9 m river é \n \t <think> </think> user assistant {{ x }} 日本 \" \\ 🎉".split(" ")


def text(draw, most=6):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))


def value(draw, depth=0):
    kind = draw.randint(0, 7 if depth < 2 else 5)
    if kind == 6:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 2))]
    if kind == 7:
        return {text(draw, 1): value(draw, depth + 1) for _ in range(draw.randint(0, 3))}
    return [draw.randint(-5, 2**53), 0.1 * draw.randint(-50, 50), None, draw.random() < 0.5, text(draw), 2.0][kind]


def arguments(draw):
    given = {name: value(draw) for name in draw.sample(["place", "at", "n", "é"], draw.randint(0, 3))}
    return json.dumps(given) if draw.random() < 0.3 else given


def call(draw):
    function = {"name": "tide", "arguments": arguments(draw)}
    return draw.choice([{"type": "function", "function": function}, {"function": function, "id": "c1"}, function])


def assistant(draw):
    turn = {"role": "assistant", "content": text(draw)}
    if draw.random() < 0.3:
        turn[draw.choice(["reasoning_content", "thinking", "reasoning"])] = text(draw)
    if draw.random() < 0.3:
        turn["tool_calls"] = [call(draw) for _ in range(draw.randint(1, 2))]
        turn["content"] = draw.choice(["", None, turn["content"]])
    if draw.random() < 0.2:
        turn = dict(reversed(turn.items()))
    return turn


def tool(name, draw):
    parameters = {"type": "object", "properties": {name: {"type": "string", "description": text(draw)}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True}}


def response(draw):
    turns = [assistant(draw)]
    if draw.random() < 0.3:
        turns += [{"role": "tool", "content": text(draw), "name": "tide"}, assistant(draw)]
    return turns


def pair(draw):
    ask = text(draw)
    before = [{"role": "system", "content": text(draw)}] if draw.random() < 0.4 else []
    if draw.random() < 0.3:
        before += [{"role": "user", "content": text(draw)}] + response(draw)
    prompt = before + [{"role": "user", "content": ask}]
    chosen, rejected = response(draw), response(draw)
    form = draw.randint(0, 3)
    if form == 0:
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    elif form == 1:
        row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    elif form == 2:  # a copy of the question, or something like it
        row = {"prompt": ask + draw.choice(["", " ", "\n"]), "chosen": prompt + chosen, "rejected": prompt + rejected}
    else:
        row = {"prompt": None, "chosen": prompt + chosen, "rejected": prompt + rejected}
    if draw.random() < 0.4:
        tools = draw.choice([[], [tool("place", draw)], [tool("place", draw), tool("é", draw)]])
        row["tools"] = json.dumps(tools) if draw.random() < 0.5 else tools
    if draw.random() < 0.4:
        row["chat_template_kwargs"] = draw.choice([{"enable_thinking": False}, {"add_generation_prompt": True}, {}])
    return row


def make_model(target, tokenizer):
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        if (tokenizer / f"{name}.gz").exists():
            (target / name).write_bytes(gzip.decompress((tokenizer / f"{name}.gz").read_bytes()))
        elif (tokenizer / name).exists():
            shutil.copy(tokenizer / name, target)
    loaded = AutoTokenizer.from_pretrained(target)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(loaded) + 7, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, num_labels=1,
        pad_token_id=loaded.pad_token_id, eos_token_id=loaded.eos_token_id, initializer_range=0.3,
    )
    model = Qwen3ForSequenceClassification(config).eval()
    model.save_pretrained(target)
    return loaded, model


def expected(row, side, tokenizer, model):
    example = {key: value for key, value in row.items() if key != "prompt" or value is not None}
    split = maybe_extract_prompt(example)
    messages = split.get("prompt", []) + split[side]
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    ids = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=False, **row.get("chat_template_kwargs", {})
    )
    with torch.no_grad():
        return messages, len(ids), model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rewarm", required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    checkpoint = folder / "rm"
    checkpoint.mkdir()
    tokenizer, model = make_model(checkpoint, options.tokenizer)
    rows = [pair(draw) for _ in range(options.pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [options.rewarm, "evaluate", "--members", checkpoint, "--pairs", f"a={folder}/pairs.jsonl"]
    subprocess.run([*command, "--output", folder / "report"], check=True, stdout=subprocess.DEVNULL)
    told = [json.loads(line) for line in (folder / "report/rewards.jsonl").read_text().splitlines()]
    told = {row["line"]: row for row in told if "error" not in row}
    worst, wrong, refused, lines, references = 0.0, 0, 0, [], []
    for line, row in enumerate(rows, 1):
        try:
            both = [expected(row, side, tokenizer, model) for side in ["chosen", "rejected"]]
        except jinja2.TemplateError:
            both = None
        if (both is None) != (line not in told):
            wrong += 1
            print(f"line {line} is {'scored' if line in told else 'not scored'}: {json.dumps(row, ensure_ascii=False)}")
        if both is None or line not in told:
            refused += 1
            continue
        for side, (messages, tokens, reward) in zip(["chosen", "rejected"], both):
            seen_tokens, seen = told[line][f"{side}_tokens"], told[line][side]["rm"]
            worst = max(worst, abs(seen - reward) / max(1, abs(reward)))
            if seen_tokens != tokens:
                wrong += 1
                print(f"line {line} {side}: {seen_tokens} tokens, not {tokens}: {json.dumps(row, ensure_ascii=False)}")
            given = {key: row[key] for key in ["tools", "chat_template_kwargs"] if key in row}
            lines.append(json.dumps({"messages": messages, **given}))
            references.append(reward)
    scored = subprocess.run(
        [options.rewarm, "score", "--model", checkpoint], input="\n".join(lines), capture_output=True, text=True
    )
    rewards = [json.loads(line).get("reward", float("nan")) for line in scored.stdout.splitlines()]
    off = [abs(one - other) / max(1, abs(other)) for one, other in zip(rewards, references, strict=True)]
    print(f"{len(told)} pairs scored, {refused} refused by the template, {wrong} differences")
    print(f"largest relative difference of rewards: evaluate {worst:.2e}, score {max(off):.2e}")
    shutil.rmtree(folder)
    raise SystemExit(wrong > 0 or worst > 1e-4 or not max(off) < 1e-4)


if __name__ == "__main__":
    main()
