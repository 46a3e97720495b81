"""GRPO against a reward model that rewarm serves: as a merge (WARM), as an ensemble (ENS), and one member alone.

    python examples/grpo/train.py                             three runs, then the plot
    python examples/grpo/train.py --seeds 0 1 2               as often again with other random numbers
    python examples/grpo/train.py --against warm --beta 0.1   a firmer hold on the policy that was started from

Members 0 to 2 of the demo family are trained against. Member 3 is held out: it judges the same completions, and nothing is
optimised against it. How far the three disagree on them is logged too, and how much completions repeat themselves.
"""
from __future__ import annotations

import argparse
import csv
import json
import pathlib
import time

import plot
import policy
import rewarm
import rewarm.trl
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

FAMILY = pathlib.Path(__file__).resolve().parents[2] / "deploy/demo"
MEMBERS = [str(FAMILY / f"member-{index}") for index in range(4)]
VARIANTS = {
    "warm": {"mode": "warm", "members": MEMBERS[:3]},
    "ens": {"mode": "ens", "members": MEMBERS[:3], "reduction": "mean"},
    "member": {"mode": "warm", "model": MEMBERS[0]},
    "judge": {"mode": "warm", "model": MEMBERS[3]},
}


#: What is logged of a step, by TRL's name for it; the reward that was trained on comes before.
LOGGED = {"ens/reward_std": "disagreement", "rewards/repeats/mean": "repeats", "kl": "kl", "completions/mean_length": "length"}


def repeats(completions: list[str], **_: object) -> list[float]:
    """The share of a completion's words that it has said before."""
    said = [completion.split() for completion in completions]
    return [1 - len(set(words)) / len(words) if words else 0.0 for words in said]


def train(address: str, against: str, start: pathlib.Path, output: pathlib.Path, steps: int, beta: float, seed: int) -> None:
    """One run; writes what was logged at each step, and completions of the trained policy."""
    begun, used = time.monotonic(), time.process_time()
    set_seed(seed)
    variants = rewarm.Client(address).info().variants

    def reward(variant: str) -> object:
        # pinned: if the server reloads another model, the run stops instead of going on with other rewards
        return rewarm.trl.reward_func(address, name=variant, asynchronous=True, variant=variant,
                                      expected_fingerprint=variants[variant].fingerprint, timeout=60)

    watched = [variant for variant in ["ens", "judge"] if variant != against]
    tokenizer = AutoTokenizer.from_pretrained(start)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        processing_class=tokenizer,
        reward_funcs=[reward(against), *map(reward, watched), repeats],
        args=GRPOConfig(
            output_dir=str(output / "trainer"), max_steps=steps, learning_rate=1e-3, lr_scheduler_type="constant_with_warmup",
            warmup_steps=5, beta=beta, per_device_train_batch_size=64, num_generations=8, max_completion_length=24,
            reward_weights=[1.0] + [0.0] * (len(watched) + 1), use_cpu=True, logging_steps=1, save_strategy="no",
            gradient_checkpointing=False, report_to=[], disable_tqdm=True, seed=seed),
        train_dataset=Dataset.from_dict({"prompt": policy.PROMPTS * 64}),
    )
    trainer.remove_callback(PrinterCallback)  # the figures are in the file
    trainer.train()
    name = plot.name(against, beta, seed)
    names = {f"rewards/{against}/mean": "trained", f"rewards/{against}/std": "trained_std", "rewards/judge/mean": "judge", **LOGGED}
    with (output / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names.values())
        table.writerows([round(log[key], 4) for key in names] for log in trainer.state.log_history if "reward" in log)
    inputs = tokenizer(policy.PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    ids = trainer.model.generate(**inputs, max_new_tokens=24, do_sample=True)[:, inputs["input_ids"].shape[1]:]
    said = [{"prompt": prompt, "response": tokenizer.decode(row, skip_special_tokens=True)}
            for prompt, row in zip(policy.PROMPTS, ids)]
    (output / f"{name}.said.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {time.monotonic() - begun:.0f} s, of one core {time.process_time() - used:.0f} s", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--against", nargs="+", default=["warm", "ens", "member"], choices=["warm", "ens", "member"])
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--beta", type=float, default=plot.BETA, help="weight of the divergence from the start (GRPO's)")
    options.add_argument("--output", type=pathlib.Path, default=pathlib.Path("grpo-runs"))
    given = options.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # its matrices are small: more threads wait for one another
    begun = time.monotonic()
    loss = policy.make(given.output / "policy")
    print(f"the policy: {loss:.2f} nats a word, {time.monotonic() - begun:.0f} s", flush=True)
    with rewarm.serve({"variants": VARIANTS, "routing": {"weights": {"warm": 1}}}) as server:
        for seed in given.seeds:
            for against in given.against:
                train(server.address, against, given.output / "policy", given.output, given.steps, given.beta, seed)
    plot.draw(given.output, given.output / "curves.svg")
    print(plot.table(given.output))


if __name__ == "__main__":
    main()
