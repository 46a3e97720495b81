"""Checkpoints with random weights for `deploy/gpu/check`, by the standard library alone, as fast as a disk takes them.

    python3 checkpoints.py FOLDER SIZES      SIZES: the fields of a Shape, as JSON

The same bytes for the same seed, everywhere: so rewards of two machines can be compared.
"""
import concurrent.futures, json, math, os, pathlib, random, struct, sys


class Shape:
    """A Qwen3 or BERT reward model's sizes."""

    def __init__(self, family, vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, longest):
        self.family, self.vocab, self.hidden, self.intermediate, self.layers = family, vocab, hidden, intermediate, layers
        self.heads, self.kv_heads, self.head_dim, self.longest = heads, kv_heads, head_dim, longest

    def config(self):
        config = dict(vocab_size=self.vocab, hidden_size=self.hidden, intermediate_size=self.intermediate, num_hidden_layers=self.layers,
                      num_attention_heads=self.heads, max_position_embeddings=self.longest, pad_token_id=0, torch_dtype="bfloat16")
        if self.family == "qwen3":
            return config | dict(architectures=["Qwen3ForSequenceClassification"], model_type="qwen3", num_key_value_heads=self.kv_heads,
                                 head_dim=self.head_dim, rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu")
        return config | dict(architectures=["BertForSequenceClassification"], model_type="bert", type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu")

    def tensors(self):
        """name → sizes, in the order of the file; norms' weights are those that end in norm.weight."""
        h, i, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.family == "qwen3":
            yield "model.embed_tokens.weight", (self.vocab, h)
            for n in range(self.layers):
                of = f"model.layers.{n}."
                yield from ((of + name + ".weight", sizes) for name, sizes in (
                    ("input_layernorm", (h,)), ("post_attention_layernorm", (h,)), ("self_attn.q_norm", (self.head_dim,)), ("self_attn.k_norm", (self.head_dim,)),
                    ("self_attn.q_proj", (q, h)), ("self_attn.k_proj", (kv, h)), ("self_attn.v_proj", (kv, h)), ("self_attn.o_proj", (h, q)),
                    ("mlp.gate_proj", (i, h)), ("mlp.up_proj", (i, h)), ("mlp.down_proj", (h, i))))
            yield from (("model.norm.weight", (h,)), ("score.weight", (1, h)))
            return
        of = "bert.embeddings."
        yield from ((of + "word_embeddings.weight", (self.vocab, h)), (of + "position_embeddings.weight", (self.longest, h)), (of + "token_type_embeddings.weight", (2, h)))
        linear = lambda name, sizes: ((name + ".weight", sizes), (name + ".bias", sizes[:1]))
        yield from linear(of + "LayerNorm", (h,))
        for n in range(self.layers):
            of = f"bert.encoder.layer.{n}."
            for name, sizes in (("attention.self.query", (h, h)), ("attention.self.key", (h, h)), ("attention.self.value", (h, h)), ("attention.output.dense", (h, h)),
                                ("attention.output.LayerNorm", (h,)), ("intermediate.dense", (i, h)), ("output.dense", (h, i)), ("output.LayerNorm", (h,))):
                yield from linear(of + name, sizes)
        yield from linear("bert.pooler.dense", (h, h))
        yield from linear("classifier", (1, h))

    def linear_flops(self):
        """Of the layers' products for one token: multiply-adds times two. Attention and head come on top and are not counted."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        mlp = (3 if self.family == "qwen3" else 2) * h * self.intermediate
        return 2 * self.layers * (h * (q + 2 * kv) + q * h + mlp)

    def write(self, folder, seed, head_seed=None):
        """A checkpoint in bf16: the same bytes for the same seed, everywhere. Members with one seed and several
        `head_seed`s differ in their heads only."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config()))
        write_tokenizer(folder, 1)
        header, pieces, at = {"__metadata__": {"format": "pt"}}, [], 0
        pools = {of: noise(of) for of in {seed, seed if head_seed is None else head_seed}}
        for index, (name, sizes) in enumerate(self.tensors()):
            size = 2 * math.prod(sizes)
            header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [at, at + size]}
            own = head_seed if head_seed is not None and name.startswith(("score", "classifier")) else seed
            pieces.append((at, size, pools[own]["norm.weight" if name.lower().endswith("norm.weight") else ""], 2 * 7919 * index))
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.flush()
            os.truncate(file.fileno(), 8 + len(text) + at)
            with concurrent.futures.ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda piece: fill(file.fileno(), 8 + len(text), *piece), pieces))
        return folder


POOL = (16 << 20) + 4098  # bytes; not a multiple of any width, so that rows do not repeat in step


def noise(seed):
    """bf16 numbers of ±0.008 to ±0.031, and those of norms, 0.87 to 1.25, as bytes to take from."""
    random_bytes = random.Random(seed).randbytes
    def pool(high):
        numbers = bytearray(random_bytes(POOL))
        numbers[1::2] = bytes(numbers[1::2]).translate(bytes(high(byte) for byte in range(256)))
        return numbers
    weights, norms = pool(lambda byte: byte & 0x80 | 0x3C), pool(lambda byte: 0x3F)
    norms[0::2] = bytes(norms[0::2]).translate(bytes(0x60 + byte % 64 for byte in range(256)))
    return {"": memoryview(weights), "norm.weight": memoryview(norms)}


def fill(file, begin, at, size, pool, offset):
    done = 0
    while done < size:
        start = (offset + done) % POOL
        done += os.pwrite(file, pool[start:start + min(size - done, POOL - start)], begin + at + done)


def write_tokenizer(folder, vocab, of_words=False):
    """Token ids need none, but a checkpoint has one. With `of_words`, t0, t1, ... are the ids, and a prompt has token
    type 0, its response 1: so token types can be asked for."""
    # some families' tokenizers keep nothing but letters, and the text that warms up has to have a token
    word = lambda id: chr(ord("!") + id) if id < 94 and not of_words else f"t{id}"
    sequence = lambda of, kind: {"Sequence": {"id": of, "type_id": kind}}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "decoder": None, "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": [sequence("A", 0)], "pair": [sequence("A", 0), sequence("B", 1)], "special_tokens": {}},
        "model": {"vocab": {word(id): id for id in range(vocab)}, "unk_token": word(0)} | ({"type": "WordLevel"} if of_words else {"type": "BPE", "merges": []}),
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"] + ["token_type_ids"] * of_words}))


if __name__ == "__main__":
    Shape(**json.loads(sys.argv[2])).write(pathlib.Path(sys.argv[1]), 20)
