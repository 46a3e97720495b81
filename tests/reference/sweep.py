#!/usr/bin/env python3
"""Takes away and contradicts each key of each file of a checkpoint, one at a time, and compares rewarm with transformers.

    pip install -r tests/reference/requirements.txt
    cargo build && python tests/reference/sweep.py [--rewarm target/debug/rewarm] [--keep DIR] [--file config.json] [--only TEXT] [NAME ...]

For each family that rewarm reads there are tiny random checkpoints, with the tokenizers that such models have. Of
each file (`config.json`, `tokenizer_config.json`, `tokenizer.json`, `special_tokens_map.json`, `added_tokens.json`) every
key is deleted, set to null, and set to other values; keys that the file lacks, and that some version of transformers
or its documentation makes users write, are put in. Each variant is given to transformers (`AutoTokenizer`,
`AutoModelForSequenceClassification`: a chat, a prompt with its response, and a text without special tokens) and to `rewarm score`.

`--export` writes a fixed few of the variants with the token ids of transformers, for `tests/rules.rs`.

Right is: the same token counts and rewards; or both refuse; or rewarm refuses by name. Where only transformers refuses (a
key that it checks and does not use, such as a null `use_cache`), rewarm must score as it does without the change.
Everything else is printed, and the exit code is 1. Where transformers itself is a matter of chance (a tensor that it
makes up), rewarm must refuse.
"""
import argparse
import copy
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="critical")
warnings.filterwarnings("ignore")

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sweep_families

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity(50)
transformers.utils.logging.disable_progress_bar()

TOLERANCE = 2e-4  # relative, of rewards near 1
CORPUS = [
    "The kettle sings while the rain falls on the tin roof, and the Kettle is old.",
    "Could you tell me how to mend a bicycle tyre with a spoon? I can't; it's 1234 years old.",
    "Ünïcode, tabs\tand “quotes”: naïve café, 日本語のテキスト.",
    "Two  spaces, 17 blue cars, <turn> and <end> are words here; numbers like 2024 too.",
]
CHAT = [{"role": "user", "content": "Name the  Kettle of 2024<end>, it's naïve."},
        {"role": "assistant", "content": "Ünï  17 cars <mark>日本\n\n 3"}]
PAIR = ("Could you mend  the Café<end> in 1234?", "It's naïve: Rain falls\n\n  on 日本語 [SEP] tyres.")
TEXT = "The naïve Kettle, 日本 <turn> 2024\n\n 17<s> cars </s>[MASK]<mark>"
TEMPLATE = ("{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
            "{{ eos_token }}{{ pad_token }}|{{ unk_token }}")
A = lambda text, **more: {"content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                          "special": True} | more


# -- tokenizers --------------------------------------------------------------------------------------------------------


def train(model, trainer, normalizer, pre_tokenizer):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def byte_level(special, template=None, digits=False):
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split]) if digits else split
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = train(models.BPE(), trainer, None, pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = template(tokenizer) if template else processors.ByteLevel(trim_offsets=True)
    return tokenizer


def with_marks(special):
    """Of which some merges go from a letter to the mark after it, and on."""
    merges = [("x", "Ì"), ("xÌ", "ģ"), ("xÌģ", "a"), ("c", "a")]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=merges))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


def bos_template(bos):
    return lambda t: processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                                   special_tokens=[(bos, t.token_to_id(bos))])


def spm_bpe(special, template=None):
    """As Llama 2 and Gemma: pieces with ▁, and bytes for what is in no piece."""
    alphabet = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=alphabet, show_progress=False)
    tokenizer = train(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True), trainer,
                      normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.post_processor = template(tokenizer) if template else None
    return tokenizer


def word_piece(special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), template=True):
    special = list(special)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer = train(models.WordPiece(unk_token="[UNK]"), trainer, normalizers.BertNormalizer(lowercase=False),
                      pre_tokenizers.BertPreTokenizer())
    if not template:
        return tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")])
    return tokenizer


def unigram(special, deberta=False):
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=special, unk_token=special[3], show_progress=False)
    tokenizer = train(models.Unigram(), trainer, normalizers.NFKC(), pre_tokenizers.Metaspace())
    if not deberta:
        ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids)
    return tokenizer


def sentence_piece(special, cls_sep=True):
    """A Unigram of CamemBERT, ALBERT or RemBERT, of the rare letters too, as their files have it."""
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer = train(models.Unigram(), trainer, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), pre_tokenizers.Metaspace())
    if cls_sep:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[(text, tokenizer.token_to_id(text)) for text in ("[CLS]", "[SEP]")])
    return tokenizer


def word_bpe(special):
    """Pieces with an end of word, as HerBERT's and the first GPT's."""
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, end_of_word_suffix="</w>", show_progress=False)
    return train(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainer, normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer())


def roberta_like():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = byte_level(special)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return tokenizer


# -- checkpoints -------------------------------------------------------------------------------------------------------


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if not weight.requires_grad:  # the sines of RoFormer
            continue
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1 and name.endswith("weight"):  # of a norm
            weight.data = (0.0 if type(model).__name__.startswith(("Gemma", "Nemotron")) else 1.0) + 0.3 * noise
        elif name.endswith("bias"):
            weight.data = 0.3 * noise
        elif "embed" in name:
            weight.data = 0.5 * noise
        else:
            weight.data = 1.5 * noise / weight.shape[-1] ** 0.5
    return model.eval()


ENCODERS = {"bert", "roberta", "xlm-roberta", "deberta", "deberta-v2", "camembert", "albert", "rembert", "mpnet"} | {model_type for model_type, _ in sweep_families.ENCODERS.values()}
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=512, num_labels=1)
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
LLAMA2 = ["<unk>", "<s>", "</s>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
CAMEMBERT = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"]
COHERE = ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
XLMR = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def named(**tokens):
    return {f"{name}_token": text for name, text in tokens.items()}


def checkpoints():
    """name → (model_type, all sizes, tokenizer, tokenizer_config)"""
    decoder = dict(num_key_value_heads=2, max_position_embeddings=256, pad_token_id=2, bos_token_id=0, eos_token_id=1)
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    llama3 = named(bos=LLAMA3[0], eos=LLAMA3[1], pad=LLAMA3[2])
    bert = named(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    roberta = named(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
    encoder = dict(max_position_embeddings=130, type_vocab_size=2, pad_token_id=0)
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    llama3_rope = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    decoders = {name: (*of, lambda: byte_level(LLAMA3, bos_template(LLAMA3[0])), fast | llama3)
                for name, of in sweep_families.DECODERS.items()}
    encoders = {name: (*of, word_piece, fast | bert | {"model_input_names": inputs_of(of[1])}) for name, of in sweep_families.ENCODERS.items()}
    first = {
        "llama": ("llama", decoder | {"rope_parameters": llama3_rope}, lambda: byte_level(LLAMA3, bos_template(LLAMA3[0])),
                  fast | llama3),
        "llama-digits": ("llama", decoder, lambda: byte_level(["<|endoftext|>"] + LLAMA3, digits=True),
                         {"tokenizer_class": "GPT2Tokenizer"} | named(bos="<|endoftext|>", eos="<|endoftext|>", pad="<|pad|>")),
        "llama-neox": ("llama", decoder, lambda: byte_level(["<|endoftext|>", "<|padding|>"], bos_template("<|endoftext|>")),
                       {"tokenizer_class": "GPTNeoXTokenizerFast"}),
        "llama-spm": ("llama", decoder, lambda: spm_bpe(LLAMA2, bos_template("<s>")),
                      {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
                      | named(bos="<s>", eos="</s>", unk="<unk>")),
        "mistral": ("mistral", decoder | {"sliding_window": 16}, lambda: spm_bpe(LLAMA2, bos_template("<s>")),
                    {"tokenizer_class": "LlamaTokenizerFast"} | named(bos="<s>", eos="</s>", unk="<unk>")),
        "qwen2": ("qwen2", decoder | {"rope_parameters": yarn, "max_position_embeddings": 64},
                  lambda: byte_level(QWEN),
                  {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "unk_token": None,
                   "added_tokens_decoder": {str(i): A(text) for i, text in enumerate(QWEN)},
                   "additional_special_tokens": QWEN[1:]} | named(eos=QWEN[2], pad=QWEN[0])),
        "llama-qwen3_5": ("llama", decoder, lambda: with_marks(QWEN), {"tokenizer_class": "Qwen3_5Tokenizer"} | named(eos=QWEN[2], pad=QWEN[0])),
        "llama-qwen2": ("llama", decoder, lambda: with_marks(QWEN), {"tokenizer_class": "Qwen2Tokenizer"} | named(eos=QWEN[2], pad=QWEN[0])),
        "qwen3": ("qwen3", decoder | {"head_dim": 16}, lambda: byte_level(QWEN),
                  {"tokenizer_class": "Qwen2TokenizerFast"} | named(eos=QWEN[2], pad=QWEN[0])),
        "gemma2": ("gemma2", decoder | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8, "pad_token_id": 0},
                   lambda: spm_bpe(GEMMA, bos_template("<bos>")),
                   {"tokenizer_class": "GemmaTokenizer"} | named(bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")),
        "gemma": ("gemma", decoder | {"head_dim": 8, "pad_token_id": 0}, lambda: spm_bpe(GEMMA, bos_template("<bos>")),
                  {"tokenizer_class": "GemmaTokenizer"} | named(bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")),
        "olmo2": ("olmo2", decoder, lambda: byte_level(["<|endoftext|>"] + LLAMA3),
                  {"tokenizer_class": "GPT2Tokenizer"} | named(eos="<|endoftext|>", pad="<|pad|>")),
        "smollm3": ("smollm3", decoder | {"no_rope_layers": [1, 0]}, lambda: byte_level(LLAMA3), fast | llama3),
        "seed-oss": ("seed_oss", decoder | {"head_dim": 16}, lambda: byte_level(LLAMA3), fast | llama3),
        "ministral": ("ministral", decoder | {"head_dim": 8, "sliding_window": 16}, lambda: byte_level(LLAMA3),
                      {"tokenizer_class": "LlamaTokenizerFast"} | llama3),
        "exaone4": ("exaone4", decoder | {"sliding_window": 16, "sliding_window_pattern": 2}, lambda: byte_level(LLAMA3),
                    fast | llama3),
        "arcee": ("arcee", decoder, lambda: byte_level(LLAMA3), fast | llama3),
        "bert": ("bert", encoder, word_piece,
                 {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": None,
                  "tokenize_chinese_chars": True} | bert),
        "bert-fast": ("bert", encoder, word_piece,
                      fast | bert | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}),
        "bert-xlmr": ("bert", encoder, lambda: unigram(XLMR), {"tokenizer_class": "XLMRobertaTokenizerFast"} | roberta),
        "bert-deberta": ("bert", encoder, lambda: unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], True),
                         {"tokenizer_class": "DebertaV2Tokenizer"} | bert | named(bos="[CLS]", eos="[SEP]")),
        "roberta": ("roberta", encoder | {"type_vocab_size": 1, "pad_token_id": 1}, roberta_like,
                    {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "trim_offsets": True} | roberta),
        "xlm-roberta": ("xlm-roberta", encoder | {"type_vocab_size": 1, "pad_token_id": 1}, lambda: unigram(XLMR),
                        {"tokenizer_class": "XLMRobertaTokenizer"} | roberta),
        "deberta-v2": ("deberta-v2", encoder | {"type_vocab_size": 0, "relative_attention": True, "position_buckets": 16, "max_relative_positions": 40,
                                                "share_att_key": True, "norm_rel_ebd": "layer_norm", "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
                       lambda: unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], True),
                       {"tokenizer_class": "DebertaV2Tokenizer"} | bert | named(bos="[CLS]", eos="[SEP]")),
        "deberta": ("deberta", encoder | {"relative_attention": True, "pos_att_type": "c2p|p2c"}, lambda: byte_level(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]),
                    {"tokenizer_class": "DebertaTokenizer"} | bert | named(bos="[CLS]", eos="[SEP]")),
        "camembert-own": ("camembert", encoder | {"type_vocab_size": 1, "pad_token_id": 1}, lambda: sentence_piece(CAMEMBERT, False),
                      {"tokenizer_class": "CamembertTokenizer"} | roberta),
        "albert-own": ("albert", encoder, lambda: sentence_piece(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]), {"tokenizer_class": "AlbertTokenizer"}),
        "rembert-own": ("rembert", encoder, lambda: sentence_piece(["<pad>", "[CLS]", "<unk>", "[SEP]", "[MASK]"]), {"tokenizer_class": "RemBertTokenizerFast"}),
        "mpnet-own": ("mpnet", encoder | {"type_vocab_size": 1, "pad_token_id": 1}, lambda: word_piece(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"], False),
                  {"tokenizer_class": "MPNetTokenizer"} | roberta | named(unk="[UNK]")),
        "phi-codegen": ("phi", decoder, lambda: byte_level(["<|endoftext|>"] + LLAMA3), {"tokenizer_class": "CodeGenTokenizer"}),
        "bert-herbert": ("bert", encoder, lambda: word_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
                         {"tokenizer_class": "HerbertTokenizerFast"} | named(cls="<s>", sep="</s>", pad="<pad>", unk="<unk>", mask="<mask>")),
        "bert-gpt": ("bert", encoder, lambda: word_bpe(["<unk>"]), {"tokenizer_class": "OpenAIGPTTokenizer"} | named(unk="<unk>")),
        "llama-cohere": ("llama", decoder, lambda: byte_level(COHERE, bos_template("<BOS_TOKEN>"), digits=True),
                         {"tokenizer_class": "CohereTokenizerFast"} | named(bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>")),
        "roberta-bert": ("roberta", encoder | {"type_vocab_size": 1, "pad_token_id": 0}, word_piece,
                         {"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]} | bert),
    }
    return {name: (kind, SIZES | sizes, *text) for name, (kind, sizes, *text) in first.items()} | decoders | encoders


def inputs_of(sizes):
    types = ["token_type_ids"] if sizes.get("type_vocab_size", 0) > 1 else []
    return ["input_ids", *types, "attention_mask"]


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1))


def read_json(path):
    return json.loads(path.read_text())


def make(name, folder):
    model_type, sizes, tokenizer, config = checkpoints()[name]
    torch.manual_seed(0)
    model_config = transformers.AutoConfig.for_model(model_type, **sizes)
    randomise(AutoModelForSequenceClassification.from_config(model_config), len(name)).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    is_decoder = model_type not in ENCODERS
    if is_decoder:
        config = config | {"chat_template": TEMPLATE}
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": 200, "clean_up_tokenization_spaces": False})
    write_json(folder / "rewarm.json", {"text_rule": "concatenation" if is_decoder else "sentence_pair"})


# -- variants ----------------------------------------------------------------------------------------------------------

OTHERS = {  # keys that some file may say beside what a checkpoint here has
    "config.json": {
        "rope_scaling": [{"rope_type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}, {},
                         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
                         {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, {"factor": 2.0},
                         {"rope_type": "longrope", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4, "factor": 2.0,
                          "original_max_position_embeddings": 32},
                         {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 32}],
        "rope_parameters": [{"rope_type": "default", "rope_theta": 77.0}, {"rope_type": "linear", "factor": 3.0}, {},
                            {"rope_type": None, "rope_theta": 77.0}, {"type": "linear", "factor": 3.0},
                            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0},
                            {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}],
        "rope_theta": [77.0, 1000000], "partial_rotary_factor": [0.5, 1.0],
        "original_max_position_embeddings": [16, 48], "mlp_bias": [True],
        "sliding_window": [4, 0], "use_sliding_window": [True], "max_window_layers": [1],
        "layer_types": [["full_attention", "sliding_attention"], ["full_attention"]],
        "attn_logit_softcapping": [1.0], "final_logit_softcapping": [1.0], "query_pre_attn_scalar": [64],
        "hidden_activation": ["silu", "gelu"], "hidden_act": ["gelu", "relu", "gelu_new", "silu"],
        "rms_norm_eps": [0.1], "layer_norm_eps": [0.1], "tie_word_embeddings": [False, True],
        "head_dim": [4, 16], "num_key_value_heads": [1, 4], "pad_token_id": [0, 1, 2, 5, 400, -1, 600],
        "eos_token_id": [5, [1, 5]], "bos_token_id": [5], "type_vocab_size": [1, 3],
        "max_position_embeddings": [20, 400], "position_embedding_type": ["absolute", "relative_key"],
        "is_decoder": [True], "add_cross_attention": [True], "num_labels": [2, 1],
        "id2label": [{"0": "A"}, {"0": "A", "1": "B"}], "problem_type": ["regression", "single_label_classification"],
        "classifier_dropout": [0.5], "hidden_dropout_prob": [0.5], "attention_dropout": [0.5], "tokenizer_class": ["BertTokenizer"],
        "torch_dtype": ["float16"], "dtype": ["float16", "float32"], "use_cache": [False], "use_bidirectional_attention": [True, False],
        "no_rope_layers": [[1, 1], [0, 0, 1], [1]], "no_rope_layer_interval": [1, 2], "sliding_window_pattern": [1, "LG", None],
        "attention_out_bias": [True], "attention_bias": [True, False], "is_causal": [True, False, None], "per_layer_config": [{}],
        "relative_attention": [False], "max_relative_positions": [10, 0, -1, None], "position_buckets": [-1, 20, 0, None, 400],
        "pos_att_type": ["c2p", " C2P | p2c", ["p2c"], [], "", None, ["p2p"]], "share_att_key": [False, True], "norm_rel_ebd": ["none", "LAYER_NORM|x"],
        "position_biased_input": [True, False], "conv_kernel_size": [3, 0], "talking_head": [True, False], "legacy": [False],
        "pooler_hidden_act": ["tanh", "relu"], "pooler_hidden_size": [16], "embedding_size": [16], "attention_head_size": [4], "pooler_dropout": [0.5],
        "architectures": [["LlamaForCausalLM"], None], "chunk_size_feed_forward": [4], "quantization_config": [None],
    },
    "tokenizer_config.json": {
        "do_lower_case": [True, False], "strip_accents": [True, False], "tokenize_chinese_chars": [True, False],
        "split_special_tokens": [True, False], "add_prefix_space": [True, False], "legacy": [True, False],
        "trim_offsets": [False], "add_bos_token": [True, False], "add_eos_token": [True, False],
        "model_input_names": [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]],
        "split_by_punct": [True], "keep_accents": [True, False], "unk_id": [0], "model_max_length": [1000000000000000019884624838656],
        "added_tokens_decoder": [{}, {"440": A("<turn>"), "441": A("<end>")}, {"900": A("<turn>"), "7": A("<end>")},
                                 {"440": A("<end>", special=False, normalized=True, lstrip=True, rstrip=True)},
                                 {"440": {"content": "Kettle", "single_word": True}}],
        "extra_special_tokens": [["<turn>", "<end>"], {"image_token": "<turn>"}, [A("<end>") | {"__type": "AddedToken"}],
                                 [A("<end>")], "<turn>"],
        "additional_special_tokens": [["<turn>", "<end>"], [A("<turn>") | {"__type": "AddedToken", "lstrip": True}]],
        "model_specific_special_tokens": [{"image_token": "<turn>"}], "image_token": ["<turn>", 3],
        "bos_token": ["<turn>", A("<turn>"), A("<turn>") | {"__type": "AddedToken"}], "eos_token": ["<end>", "cars"],
        "pad_token": ["<end>"], "unk_token": ["<end>"], "cls_token": ["<turn>"], "sep_token": ["<end>"], "mask_token": ["<turn>"],
        "tokenizer_class": ["PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "GPT2Tokenizer", "GPT2TokenizerFast",
                            "BertTokenizerFast", "RobertaTokenizer", "XLMRobertaTokenizer", "Qwen2Tokenizer", "GemmaTokenizerFast",
                            "DistilBertTokenizer", "DebertaV2Tokenizer", "GPTNeoXTokenizer", "NoSuchTokenizer", "PreTrainedTokenizer",
                            "ElectraTokenizer", "MPNetTokenizer", "BertJapaneseTokenizer", "BloomTokenizerFast", "BartTokenizer"],
        "chat_template": ["{{ messages[0].content }}", [{"name": "default", "template": "{{ messages[1].content }}"}],
                          [{"name": "rag", "template": "x"}], {"default": "{{ messages[0].role }}<end>", "rag": "y"}, {"rag": "y"}],
        "padding_side": ["left"], "truncation_side": ["left"], "truncation": [True], "max_length": [4], "padding": [True],
        "return_token_type_ids": [True], "never_split": [["Kettle"]], "do_basic_tokenize": [False],
        "init_inputs": [[]], "backend": ["tokenizers"], "errors": ["ignore"], "use_fast": [False], "name_or_path": ["x/y"],
    },
    "tokenizer.json": {
        "normalizer": [{"type": "Lowercase"}, {"type": "NFC"}], "pre_tokenizer": [{"type": "WhitespaceSplit"}],
        "truncation": [{"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}],
        "padding": [{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                     "pad_token": "cars"}],
        "added_tokens": [[]], "post_processor": [None], "decoder": [{"type": "ByteLevel"}],
    },
    "tokenizer.json/model": {
        "unk_token": ["a"], "continuing_subword_prefix": [""], "end_of_word_suffix": ["", "x"], "fuse_unk": [True, False],
        "byte_fallback": [True, False], "ignore_merges": [True, False], "dropout": [0.0], "max_input_chars_per_word": [3],
        "unk_id": [0],
    },
}
FILES = {  # whole files beside the others
    "special_tokens_map.json": [
        {"bos_token": "<turn>", "eos_token": A("<end>")}, {"additional_special_tokens": ["<turn>", "<end>"]},
        {"additional_special_tokens": [A("<turn>")]}, {"extra_special_tokens": ["<turn>", "cars"]}, {"pad_token": None},
        {"image_token": "<turn>"}, {"cls_token": "<turn>", "sep_token": "<end>", "unk_token": "<turn>"},
        {"add_bos_token": True}, {"model_input_names": ["input_ids"]},
    ],
    "added_tokens.json": [{"<turn>": 440, "<end>": 441}, {"<end>": 9, "cars": 500}, {}],
    "generation_config.json": [{"pad_token_id": 3, "eos_token_id": 4}],
    "chat_template.jinja": ["{{ messages[0].content }}<end>\n"],
    "additional_chat_templates/tool_use.jinja": ["{{ messages[0].content }}"],
    "additional_chat_templates/default.jinja": ["{{ messages[1].content }}"],
    "chat_template.json": [{"chat_template": "{{ messages[0].content }}"}],
    "vocab.json": [{"a": 0}], "merges.txt": ["a b\n"], "vocab.txt": ["a\n"],
}
TENSORS = {"score.bias": lambda: torch.full((1,), 5.0), "lm_head.weight": lambda: torch.zeros(512, 32),
           "classifier.bias": None, "score.weight": None}
SKIPPED = {"model_type", "transformers_version", "vocab", "merges", "type", "version"}


READ_BY_MANY = {"rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "head_dim", "num_key_value_heads", "is_decoder", "sliding_window"}
READ_BY_ALL = {"use_cache", "dtype", "architectures", "initializer_range", "bos_token_id", "tie_word_embeddings", "id2label", "label2id", "problem_type",
               "chunk_size_feed_forward", "num_labels", "output_past"}


def contradictions(value):
    """Values of the same kind that say something else."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value * 2] if value > 3 else [value + 1]
        case float():
            return [value * 2]
        case str():
            return ["gelu"] if value in ("silu", "gelu_pytorch_tanh") else []
        case list() if value:
            return [value[:-1]]
        case _:
            return []


def inside(document, path):
    for key in path:
        document = document[key]
    return document


def variants(folder, is_quick=False):
    """(description, what to do in a copy of the folder). `is_quick`: of `config.json` only what the family may read."""
    config = read_json(folder / "config.json")
    own = sweep_families.OWN.get(config["model_type"], {})
    of_config = {key: OTHERS["config.json"].get(key, []) + own.get(key, []) for key in OTHERS["config.json"] | own
                 if not is_quick or key in own or key in config or key in config.get("text_config", {}) or key in READ_BY_MANY}
    nested = {"text_config": of_config, "attn_config": sweep_families.ATTENTION_OF_MPT}
    places = OTHERS | {"config.json": of_config} | {f"config.json/{key}": nested[key] for key in nested if key in config}
    for place, others in places.items():
        file, *path = place.split("/")
        present = inside(read_json(folder / file), path)

        def edit(copy_of, key, change, file=file, path=path):
            document = read_json(copy_of / file)
            change(inside(document, path), key)
            write_json(copy_of / file, document)

        for key in sorted(set(present) | set(others)):
            if key in SKIPPED or is_quick and (key in READ_BY_ALL or "drop" in key):
                continue
            if key in present:
                yield f"{place} without {key}", lambda c, key=key, edit=edit: edit(c, key, lambda d, k: d.pop(k))
            values = [None] + contradictions(present.get(key)) + others.get(key, [])
            for value in {json.dumps(value): value for value in values}.values():
                if key in present and present[key] == value and type(present[key]) is type(value):
                    continue
                yield (f"{place} {key} = {json.dumps(value)}",
                       lambda c, key=key, value=value, edit=edit: edit(c, key, lambda d, k: d.__setitem__(k, value)))
    for parameter in sorted(config.get("rope_parameters") or {}):
        for value in ["without", None, 2.0, 100.0]:
            def rope(copy_of, parameter=parameter, value=value):
                document = read_json(copy_of / "config.json")
                if value == "without":
                    document["rope_parameters"].pop(parameter)
                else:
                    document["rope_parameters"][parameter] = value
                write_json(copy_of / "config.json", document)
            yield f"config.json/rope_parameters {parameter} {value}", rope
    for without, changes in sweep_families.OLD_FORMS if "rope_parameters" in config.get("text_config", config) else []:
        def age(copy_of, without=without, changes=changes):
            document = read_json(copy_of / "config.json")
            of_text = document.get("text_config", document)
            for key in ("rope_parameters", *without):
                of_text.pop(key, None)
            of_text.update(changes)
            write_json(copy_of / "config.json", document)
        yield f"config.json in the old form{''.join(f' without {key}' for key in without)}: {json.dumps(changes)}", age
    for file, contents in FILES.items():
        for content in contents:
            def put(copy_of, file=file, content=content):
                (copy_of / file).parent.mkdir(exist_ok=True)
                (copy_of / file).write_text(content if isinstance(content, str) else json.dumps(content))
            yield f"with {file} {json.dumps(content)[:90]}", put
    yield "without tokenizer_config.json", lambda c: (c / "tokenizer_config.json").unlink()
    for tensor, value in TENSORS.items():
        def weights(copy_of, tensor=tensor, value=value):
            tensors = load_file(copy_of / "model.safetensors")
            if value is None:
                tensors.pop(tensor, None)
            else:
                tensors[tensor] = value()
            save_file(tensors, copy_of / "model.safetensors", metadata={"format": "pt"})
        yield f"model.safetensors {'without' if value is None else 'with'} {tensor}", weights


# -- both sides --------------------------------------------------------------------------------------------------------


def reference(folder):
    """(tokens, reward) of each input by transformers, or a word of why not."""
    model_type = read_json(folder / "config.json").get("model_type")
    results = {}
    try:
        # Falcon's eager attention adds ALiBi twice
        attention = "sdpa" if model_type == "falcon" and read_json(folder / "config.json").get("alibi") else "eager"
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True, attn_implementation=attention, dtype=torch.float32)
    except Exception as error:
        return f"model: {type(error).__name__}: {error}"[:160]
    if info["missing_keys"] or info["mismatched_keys"]:
        return f"makes up {sorted(info['missing_keys'])[:2]}"
    if model.config.num_labels != 1:
        return f"{model.config.num_labels} labels"
    model.eval()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        return f"tokenizer: {type(error).__name__}: {error}"[:160]
    is_decoder = model_type not in ENCODERS
    inputs = {
        "chat": lambda: tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True),
        "pair": lambda: tokenizer(PAIR[0] + PAIR[1]) if is_decoder else tokenizer(*PAIR),
        "text": lambda: tokenizer(TEXT, add_special_tokens=False),
        "ids": lambda: {"input_ids": list(range(3, 40))},
        "ids and pad": lambda: {"input_ids": list(range(6, 30)) + [2, 1, 0]},
        "long": lambda: {"input_ids": [3 + n % 200 for n in range(100)]},
    }
    for name, encode in inputs.items():
        try:
            encoded = {key: torch.tensor([value]) for key, value in encode().items() if key != "attention_mask"}
            with torch.no_grad():
                reward = model(**encoded, attention_mask=torch.ones_like(encoded["input_ids"])).logits[0, 0].item()
            results[name] = (encoded["input_ids"].shape[1], reward)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"[:120]
    return results


def rewarm(binary, folder):
    lines = [{"messages": CHAT}, {"prompt": PAIR[0], "response": PAIR[1]}, {"formatted": TEXT}, {"token_ids": list(range(3, 40))},
             {"token_ids": list(range(6, 30)) + [2, 1, 0]}, {"token_ids": [3 + n % 200 for n in range(100)]}]
    done = subprocess.run([binary, "score", "--model", str(folder)], input="".join(json.dumps(line) + "\n" for line in lines),
                          capture_output=True, text=True, timeout=120)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    if len(answers) != len(lines):
        crashed = done.returncode not in (0, 1) or "panicked" in done.stderr
        return ("CRASH " if crashed else "") + " ".join(done.stderr.split())[-260:]
    named = zip(("chat", "pair", "text", "ids", "ids and pad", "long"), answers)
    return {name: (answer["tokens"], answer["reward"]) if "reward" in answer else answer["error"] for name, answer in named}


def is_close(want, got):
    return want[0] == got[0] and abs(want[1] - got[1]) <= TOLERANCE * max(1, abs(want[1]))


def disagreement(expected, seen, unchanged):
    """What is wrong, if anything is; and how it went. `unchanged` is what rewarm says of the checkpoint as it is."""
    def is_unchanged(names):
        pairs = [(unchanged[name], seen[name]) for name in names]
        return all(isinstance(now, str) or not isinstance(was, str) and is_close(was, now) for was, now in pairs)

    if isinstance(seen, str):
        if seen.startswith("CRASH"):
            return f"crash: {seen}", "crash"
        return None, "both refuse" if isinstance(expected, str) else "refused by name"
    if isinstance(expected, str):
        if is_unchanged(seen) and not expected.startswith("makes up"):
            return None, "transformers refuses what has no effect"
        return f"transformers: {expected}; rewarm: {seen}", "only transformers refuses"
    wrong, refused = [], 0
    for name, got in seen.items():
        want = expected[name]
        if isinstance(got, str):
            refused += not isinstance(want, str)
        elif isinstance(want, str):
            if is_unchanged([name]):
                continue
            wrong.append(f"{name}: transformers {want}, rewarm {got}")
        elif not is_close(want, got):
            wrong.append(f"{name}: transformers {want[0]} tokens, {want[1]:.5f}; rewarm {got[0]} tokens, {got[1]:.5f}")
    if wrong:
        return "; ".join(wrong), "differs"
    return None, "equal" if refused == 0 else "equal, some samples refused"


EXPORTED = {  # checkpoint → variants by the end of their descriptions
    "llama": ["as it is", "tokenizer_config.json split_special_tokens = true", "without tokenizer_config.json",
              "tokenizer_config.json tokenizer_class = \"GPT2Tokenizer\"", "tokenizer_config.json tokenizer_class = \"LlamaTokenizer\"",
              "tokenizer_config.json tokenizer_class = \"BertTokenizerFast\"", "tokenizer_config.json tokenizer_class = \"MPNetTokenizer\"",
              "tokenizer_config.json tokenizer_class = \"NoSuchTokenizer\"",
              "tokenizer_config.json extra_special_tokens = [\"<turn>\", \"<end>\"]",
              "tokenizer_config.json extra_special_tokens = {\"image_token\": \"<turn>\"}", "tokenizer_config.json eos_token = \"<end>\"",
              "with added_tokens.json {\"<turn>\": 440, \"<end>\": 441}", "with added_tokens.json {\"<end>\": 9, \"cars\": 500}",
              "special_tokens_map.json {\"additional_special_tokens\": [\"<turn>\", \"<end>\"]}",
              "special_tokens_map.json {\"add_bos_token\": true}", "tokenizer_config.json add_eos_token = true"],
    "llama-digits": ["as it is", "tokenizer_config.json tokenizer_class = \"PreTrainedTokenizerFast\"", "tokenizer_config.json without bos_token"],
    "llama-spm": ["as it is", "tokenizer_config.json legacy = true", "tokenizer_config.json add_prefix_space = false",
                  "tokenizer.json decoder = {\"type\": \"ByteLevel\"}",
                  "tokenizer_config.json tokenizer_class = \"PreTrainedTokenizerFast\""],
    "qwen2": ["as it is", "tokenizer_config.json tokenizer_class = \"PreTrainedTokenizerFast\"", "without added_tokens_decoder",
              "tokenizer.json normalizer = {\"type\": \"Lowercase\"}"],
    "gemma2": ["as it is"],
    "bert": ["as it is", "do_lower_case = true", "strip_accents = true", "tokenize_chinese_chars = false", "without do_lower_case",
             "tokenizer_config.json tokenizer_class = \"TokenizersBackend\"", "tokenizer_class = \"DistilBertTokenizer\"",
             "model_input_names = [\"input_ids\", \"attention_mask\"]", "tokenizer_config.json cls_token = \"<turn>\""],
    "bert-xlmr": ["as it is"],
    "bert-deberta": ["as it is", "split_by_punct = true"],
    "roberta": ["as it is", "add_prefix_space = true", "tokenizer_config.json sep_token = \"<end>\""],
    "roberta-bert": ["as it is", "tokenizer_config.json without model_input_names"],
}


EXPORTED_CLASSES = {  # the same of classes that rebuild in ways of their own
    "camembert-own": ["as it is", "tokenizer_config.json add_prefix_space = false", "tokenizer.json added_tokens = []", "tokenizer_config.json unk_token = \"<end>\"",
                  "tokenizer_config.json additional_special_tokens = [\"<turn>\", \"<end>\"]", "tokenizer_config.json without mask_token"],
    "albert-own": ["as it is", "keep_accents = true", "do_lower_case = false", "tokenizer.json post_processor = null", "tokenizer.json added_tokens = []",
               "special_tokens_map.json {\"add_bos_token\": true}", "tokenizer_config.json cls_token = \"<turn>\"", "normalizer = {\"type\": \"Lowercase\"}"],
    "rembert-own": ["as it is", "keep_accents = false", "do_lower_case = true", "tokenizer.json post_processor = null", "tokenizer.json added_tokens = []",
                "special_tokens_map.json {\"add_bos_token\": true}", "tokenizer_config.json cls_token = \"<turn>\"",
                "tokenizer_config.json cls_token = null"],
    "mpnet-own": ["as it is", "do_lower_case = false", "strip_accents = false", "tokenize_chinese_chars = false", "tokenizer.json added_tokens = []",
              "tokenizer_config.json cls_token = \"<turn>\"", "tokenizer_config.json without mask_token"],
    "llama-qwen3_5": ["as it is", "add_prefix_space = true", "tokenizer_config.json eos_token = \"<end>\"", "tokenizer.json added_tokens = []", "tokenizer_config.json without eos_token"],
    "llama-qwen2": ["as it is"],
    "phi-codegen": ["as it is", "add_prefix_space = true", "tokenizer_config.json eos_token = \"<end>\""],
    "bert-herbert": ["as it is", "tokenizer.json added_tokens = []", "tokenizer_config.json sep_token = \"<end>\""],
    "bert-gpt": ["as it is", "tokenizer_config.json unk_token = \"<end>\""],
    "llama-cohere": ["as it is", "add_prefix_space = true", "tokenizer.json added_tokens = []", "tokenizer.json post_processor = null"],
}
CLASS_PAIR = ("Could you ``mend''  the Café<end> in 1234?", "It's naïve: Rain falls\n\n  on 日本語 <mask> tyres.")
CLASS_TEXT = "The naïve KETTLE, 日本 <turn>  2024\n\n 17<s> cars </s>[MASK]<mark> <mask> ''x`` <S> <MASK> <s>NOTUSED &☃ x\u0301a"
EXPORTS = {"cases": (EXPORTED, PAIR, TEXT), "class_cases": (EXPORTED_CLASSES, CLASS_PAIR, CLASS_TEXT)}


def export(work, target, which):
    """The files of each base, and for each variant those that differ, with what transformers makes of the texts."""
    target.mkdir(parents=True, exist_ok=True)
    exported, pair, text = EXPORTS[which]
    cases = []
    for name, wanted in exported.items():
        base = work / name
        base.mkdir()
        make(name, base)
        (target / name).mkdir(exist_ok=True)
        texts = [path.name for path in base.iterdir() if path.suffix == ".json" and path.name != "rewarm.json"]
        for file in texts:
            document = read_json(base / file)
            (target / name / file).write_text(compact(document) + "\n")
        all_variants = [("as it is", lambda copy_of: None), *variants(base)]
        for description in wanted:
            [change] = [change for what, change in all_variants if what.endswith(description)]
            variant = work / "variant"
            shutil.rmtree(variant, ignore_errors=True)
            shutil.copytree(base, variant)
            change(variant)
            files = {}
            for file in {path.name for path in [*base.iterdir(), *variant.iterdir()] if path.suffix == ".json"}:
                before = (base / file).read_text() if (base / file).exists() else None
                after = (variant / file).read_text() if (variant / file).exists() else None
                if before != after:
                    files[file] = after and json.loads(after)
            cases.append({"base": name, "what": description, "files": files, "expected": tokens_of(variant, pair, text)})
    head = compact({"made_with": {"transformers": transformers.__version__}, "chat": CHAT, "pair": pair, "text": text})
    lines = ",\n".join(map(compact, cases))
    (target / f"{which}.json").write_text(f'{head[:-1]},"cases":[\n{lines}\n]}}\n')


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def tokens_of(folder, pair_of_texts, text):
    """Ids, and token types as the model sees them, of a chat, a pair and a text; null for what transformers refuses."""
    is_decoder = read_json(folder / "config.json")["model_type"] not in ENCODERS
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        pair = tokenizer("".join(pair_of_texts)) if is_decoder else tokenizer(*pair_of_texts)
        answer = {"pair": pair["input_ids"], "text": tokenizer(text, add_special_tokens=False)["input_ids"]}
        if is_decoder and tokenizer.chat_template:
            answer["chat"] = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
        if not is_decoder:
            answer["types"] = pair.get("token_type_ids", [0] * len(pair["input_ids"]))
        return answer
    except Exception:
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewarm", default="target/debug/rewarm")
    parser.add_argument("--keep", help="a folder for the variants that disagree")
    parser.add_argument("--only", default="", help="variants whose description has this text")
    parser.add_argument("--file", default="", help="variants of the file whose name this is the begin of")
    parser.add_argument("--quick", action="store_true", help="without the keys of config.json that all families read alike, or only others read")
    parser.add_argument("--refused", action="store_true", help="print what only rewarm refuses, too")
    parser.add_argument("--export", help="only write the fixed few to this folder: tests/data/rules; NAME: cases, or class_cases")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="rewarm-sweep-"))
    if arguments.export:
        for file in arguments.names or EXPORTS:
            export(work, pathlib.Path(arguments.export), file)
        shutil.rmtree(work)
        return
    wrong, counts = 0, {}
    for name in arguments.names or checkpoints():
        folder = work / name
        folder.mkdir()
        make(name, folder)
        unchanged = rewarm(arguments.rewarm, folder)
        for description, change in [("as it is", lambda copy_of: None), *variants(folder, arguments.quick)]:
            if arguments.only not in description or not description.startswith((arguments.file, "as it is")):
                continue
            variant = work / "variant"
            shutil.rmtree(variant, ignore_errors=True)
            shutil.copytree(folder, variant)
            change(variant)
            expected, seen = reference(variant), rewarm(arguments.rewarm, variant)
            problem, outcome = disagreement(expected, seen, unchanged)
            counts[outcome] = counts.get(outcome, 0) + 1
            if problem is None and description == "as it is" and outcome != "equal":
                problem = f"the checkpoint itself: {outcome}: {expected}, {seen}"
            if problem:
                wrong += 1
                print(f"{name}: {description}\n    {problem}", flush=True)
                if arguments.keep:
                    kept = pathlib.Path(arguments.keep) / f"{wrong:03}-{name}"
                    shutil.copytree(variant, kept, dirs_exist_ok=True)
                    (kept / "variant.txt").write_text(f"{description}\n{problem}\n")
            elif arguments.refused and "refused" in outcome:
                print(f"({name}: {description}: {outcome}\n    {expected}\n    {seen})", flush=True)
    shutil.rmtree(work)
    print(f"{sum(counts.values())} variants: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    print(f"transformers {transformers.__version__}: {wrong} disagreements")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
