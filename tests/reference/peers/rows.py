"""What is compared: shapes of models (sizes of the public configs), the rows of the table, and what each executes.

No imports beyond the standard library: the driver and all workers read this file, each with its own Python.
"""
import dataclasses
import math
import random

BERT = dict(vocab_size=30522, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=512)
SHAPES = {
    "minilm": ("bert", {**BERT, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}),
    "bert-base": ("bert", BERT),
    "smollm2": ("llama", dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                              max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5)),
    "llama-512x8": ("llama", dict(vocab_size=32000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
                                  max_position_embeddings=4096)),
    "qwen3": ("qwen3", dict(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
                            head_dim=128, max_position_embeddings=40960, rope_theta=1000000.0, rms_norm_eps=1e-6)),
    # small ones, to try this script
    "try-bert": ("bert", {**BERT, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}),
    "try-llama": ("llama", dict(vocab_size=2000, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                max_position_embeddings=2048)),
    "modernbert-base": ("modernbert", dict(vocab_size=50368, hidden_size=768, intermediate_size=1152, num_hidden_layers=22, num_attention_heads=12,
                                           max_position_embeddings=8192, classifier_pooling="mean")),
    "deberta-v3-base": ("deberta-v2", dict(vocab_size=128100, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                                           max_position_embeddings=512, layer_norm_eps=1e-7, type_vocab_size=0, position_biased_input=False, relative_attention=True,
                                           position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"])),
}


def is_decoder(shape):
    return SHAPES[shape][0] in ("llama", "qwen3")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: samples on a model, and by how much each precision shall lead the best peer."""

    name: str
    shape: str
    lengths: tuple
    targets: dict  # precision -> ratio; None: told, not judged
    prompt: int = 0  # tokens that all samples begin with
    kind: str = "forward"  # or served, memory, merge, ens

    def samples(self, seed=1):
        """Token ids, the same everywhere; never a special token."""
        noise, vocab = random.Random(seed), SHAPES[self.shape][1]["vocab_size"]
        ids = [noise.randrange(1000, vocab) for _ in range(self.prompt + sum(self.lengths))]
        shared, own, found = ids[:self.prompt], ids[self.prompt:], []
        for tokens in self.lengths:
            found.append(shared + own[:tokens])
            own = own[tokens:]
        return found


def mixed(count, shortest, longest):
    """Log-uniform lengths, the same in every run."""
    noise = random.Random(0)
    return tuple(round(math.exp(noise.uniform(math.log(shortest), math.log(longest)))) for _ in range(count))


def both(target):
    return {"f32": target, "bf16": target}


ROWS = [
    Row("bert-base-1x32", "bert-base", (32,), both(1.15)),
    Row("bert-base-1x128", "bert-base", (128,), both(1.15)),
    Row("bert-base-8x128", "bert-base", (128,) * 8, both(1.15)),
    Row("bert-base-4x512", "bert-base", (512,) * 4, both(1.2)),
    Row("minilm-32x128", "minilm", (128,) * 32, both(1.25)),
    Row("minilm-64-mixed", "minilm", mixed(64, 16, 512), both(1.35)),
    Row("smollm2-8x256", "smollm2", (256,) * 8, both(1.2)),
    Row("llama-512x8-8x256", "llama-512x8", (256,) * 8, {"f32": 1.25}),
    Row("qwen3-4x512", "qwen3", (512,) * 4, {"bf16": 1.2}),
    Row("qwen3-8-mixed", "qwen3", mixed(8, 64, 1024), {"bf16": 1.25}),
    Row("qwen3-1x128", "qwen3", (128,), {"bf16": 1.15}),
    Row("smollm2-group", "smollm2", (128,) * 16, {"bf16": 1.35}, prompt=512),
    Row("qwen3-group", "qwen3", (128,) * 16, {"bf16": 1.25}, prompt=512),
    Row("smollm2-served", "smollm2", (256,) * 64, {"bf16": 1.3}, kind="served"),
    Row("merge", "merge", (), {"bf16": 2.5}, kind="merge"),
    Row("ens", "minilm", (128,) * 32, both(4.0), kind="ens"),
    Row("memory-minilm", "minilm", mixed(64, 16, 512), {"f32": 0.7}, kind="memory"),
    Row("memory-bert-base", "bert-base", mixed(32, 16, 512), {"f32": 0.7}, kind="memory"),
    Row("memory-smollm2", "smollm2", mixed(16, 16, 512), {"bf16": 0.7}, kind="memory"),
    Row("memory-qwen3", "qwen3", mixed(8, 16, 512), {"bf16": 0.7}, kind="memory"),
]
# Only with --only: rows of small models, which try this script, and models for which the issue asks nothing.
MORE = [
    Row("try-encoder", "try-bert", mixed(8, 8, 64), both(None)),
    Row("try-decoder", "try-llama", (48,) * 4, both(None)),
    Row("try-group", "try-llama", (16,) * 4, both(None), prompt=64),
    Row("try-served", "try-llama", (32,) * 16, {"f32": None}, kind="served"),
    Row("try-memory", "try-bert", mixed(8, 8, 64), {"f32": None}, kind="memory"),
    Row("try-ens", "minilm", (16,) * 4, {"f32": None}, kind="ens"),
    Row("modernbert-base-2x512", "modernbert-base", (512,) * 2, both(None)),
    Row("modernbert-base-8-mixed", "modernbert-base", mixed(8, 32, 1024), both(None)),
    Row("deberta-v3-base-1x512", "deberta-v3-base", (512,), both(None)),
    Row("deberta-v3-base-8x512", "deberta-v3-base", (512,) * 8, both(None)),
]


def operations(row):
    """Multiplications and additions that the row needs: products and attention, the last layer's wanted rows only, a shared prompt
    once. None where attention is of another kind."""
    family, sizes = SHAPES[row.shape]
    if family not in ("bert", "llama", "qwen3"):
        return None
    hidden, layers, heads = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"]
    head_dim = sizes.get("head_dim", hidden // heads)
    queries, pairs = heads * head_dim, 2 * sizes.get("num_key_value_heads", heads) * head_dim
    mlp = (3 if is_decoder(row.shape) else 2) * hidden * sizes["intermediate_size"]
    rest = hidden * queries + queries * hidden + mlp  # what a row whose output is wanted multiplies, its keys and values apart

    def sequence(begin, end):
        """Of positions begin..end, of which the last one is wanted (an encoder's first)."""
        tokens = end - begin
        # (query, key) pairs of attention
        seen = sum(range(begin + 1, end + 1)) if is_decoder(row.shape) else tokens * end
        inner = (layers - 1) * (tokens * (rest + hidden * pairs) + 2 * seen * queries)
        return inner + tokens * hidden * pairs + rest + 2 * end * queries

    total = sum(sequence(row.prompt, row.prompt + tokens) for tokens in row.lengths)
    if row.prompt:  # nobody wants a reward of the prompt alone
        total += sequence(0, row.prompt) - rest - 2 * row.prompt * queries
    if family == "bert":
        total += len(row.lengths) * hidden * hidden  # the pooler
    return 2 * total
