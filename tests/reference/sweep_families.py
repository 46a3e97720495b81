"""For sweep.py: a tiny checkpoint of each family that came later, and the keys that its files are known to say."""


def rope(theta=10_000.0, **more):
    return {"rope_type": "default", "rope_theta": theta} | more


LLAMA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
             max_position_embeddings=256, pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1)
GPT = dict(n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=256, vocab_size=512, pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1)
BERT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=512, max_position_embeddings=130,
            type_vocab_size=2, pad_token_id=0, num_labels=1)
ROBERTA = BERT | dict(type_vocab_size=1, pad_token_id=1)
FALCON = dict(hidden_size=32, ffn_hidden_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=512, max_position_embeddings=256,
              pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1)
MODERN = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=512, max_position_embeddings=256,
              pad_token_id=2, bos_token_id=0, eos_token_id=1, cls_token_id=0, sep_token_id=1, num_labels=1, local_attention=16)
DEBERTA = BERT | dict(relative_attention=True, max_relative_positions=20)
BY_TYPE = {"full_attention": rope(1000.0), "sliding_attention": rope(50.0)}
VISION = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8)
GEMMA3 = LLAMA | dict(head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"], rope_parameters=BY_TYPE)

DECODERS = {  # name → (model_type, sizes)
    "ministral3": ("ministral3", LLAMA | dict(head_dim=8, sliding_window=20, rope_parameters=rope(
        100.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.4))),
    "gemma3_text": ("gemma3_text", GEMMA3 | dict(query_pre_attn_scalar=20)),
    "gemma3": ("gemma3", dict(text_config={key: value for key, value in GEMMA3.items() if key != "num_labels"}, vision_config=VISION,
                              num_labels=1, mm_tokens_per_image=4)),
    "olmo": ("olmo", LLAMA),
    "olmo3": ("olmo3", LLAMA | dict(num_hidden_layers=4, sliding_window=16)),
    "phi": ("phi", LLAMA | dict(qk_layernorm=True)),
    "phi3": ("phi3", LLAMA | dict(sliding_window=20, original_max_position_embeddings=64, max_position_embeddings=128)),
    "glm": ("glm", LLAMA | dict(head_dim=8, attention_bias=True)),
    "glm4": ("glm4", LLAMA | dict(head_dim=8)),
    "helium": ("helium", LLAMA | dict(head_dim=8)),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", LLAMA | dict(head_dim=8)),
    "nemotron": ("nemotron", LLAMA | dict(head_dim=8)),
    "starcoder2": ("starcoder2", LLAMA | dict(sliding_window=20)),
    "stablelm": ("stablelm", LLAMA | dict(use_parallel_residual=True, partial_rotary_factor=0.5)),
    "persimmon": ("persimmon", LLAMA),
    "gpt_neox": ("gpt_neox", LLAMA | dict(rotary_pct=0.5)),
    "gptj": ("gptj", GPT | dict(rotary_dim=4)),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neo": ("gpt_neo", dict(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, vocab_size=512, max_position_embeddings=256, window_size=16,
                                attention_types=[[["global", "local"], 1]], pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1)),
    "opt": ("opt", dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=512, max_position_embeddings=256,
                        pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1, word_embed_proj_dim=32)),
    "opt-350m": ("opt", dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=512, max_position_embeddings=256,
                             pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "falcon": ("falcon", FALCON),
    "falcon-40b": ("falcon", FALCON | dict(new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-rw": ("falcon", FALCON | dict(multi_query=False, parallel_attn=False, bias=True)),
    "falcon-alibi": ("falcon", FALCON | dict(multi_query=False, parallel_attn=False, bias=True, alibi=True)),
    "openai-gpt": ("openai-gpt", {key: value for key, value in GPT.items() if key != "n_inner"}),
    "biogpt": ("biogpt", {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}),
    "cohere_compass_text": ("cohere_compass_text", LLAMA | dict(num_hidden_layers=4, sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2, rope_parameters={
        "sliding_attention": rope(100.0), "full_attention": None})),
    "bloom": ("bloom", dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=512, pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1)),
    "mpt": ("mpt", dict(d_model=32, n_layers=2, n_heads=4, max_seq_len=256, vocab_size=512, pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=1)),
    "modernbert-decoder": ("modernbert-decoder", MODERN),
}
ENCODERS = {
    "distilbert": ("distilbert", dict(dim=32, hidden_dim=48, n_layers=2, n_heads=4, vocab_size=512, max_position_embeddings=130, pad_token_id=0, num_labels=1)),
    "electra": ("electra", BERT | dict(embedding_size=16)),
    "albert": ("albert", BERT | dict(embedding_size=16, num_hidden_layers=4, num_hidden_groups=2, inner_group_num=1)),
    "rembert": ("rembert", BERT | dict(input_embedding_size=16, output_embedding_size=24)),
    "ernie": ("ernie", BERT | dict(use_task_id=True)),
    "megatron-bert": ("megatron-bert", BERT),
    "roberta-prelayernorm": ("roberta-prelayernorm", ROBERTA),
    "camembert": ("camembert", ROBERTA),
    "xlm-roberta-xl": ("xlm-roberta-xl", ROBERTA),
    "data2vec-text": ("data2vec-text", ROBERTA),
    "deberta": ("deberta", DEBERTA | dict(type_vocab_size=0, position_biased_input=False, pos_att_type=["c2p", "p2c"])),
    "deberta-v2": ("deberta-v2", DEBERTA | dict(type_vocab_size=0, position_biased_input=False, pos_att_type=["p2c", "c2p"], share_att_key=True,
                                                norm_rel_ebd="layer_norm", position_buckets=16, max_relative_positions=-1)),
    "deberta-v2-apart": ("deberta-v2", DEBERTA | dict(pos_att_type="c2p|p2c")),
    "modernbert": ("modernbert", MODERN),
    "deberta-v2-conv": ("deberta-v2", DEBERTA | dict(type_vocab_size=0, pos_att_type=["p2c", "c2p"], conv_kernel_size=3, conv_act="gelu", position_buckets=16)),
    "mpnet": ("mpnet", ROBERTA),
    "roformer": ("roformer", BERT | dict(embedding_size=16)),
    "ultrabert": ("ultrabert", LLAMA | dict(num_hidden_layers=4, sliding_window=16)),
    "eurobert": ("eurobert", LLAMA),
    "nomic_bert": ("nomic_bert", BERT),
    "gte": ("gte", BERT | dict(type_vocab_size=1)),
    "jina_embeddings_v3": ("jina_embeddings_v3", ROBERTA),
}

ROPES_BY_TYPE = [BY_TYPE, {"full_attention": rope(77.0)}, {"sliding_attention": rope(77.0)}, {"full_attention": None},
                 {"full_attention": rope(77.0, rope_type="linear", factor=2.0), "sliding_attention": rope(500.0)},
                 {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}},
                 {"full_attention": {"rope_theta": 77.0}, "sliding_attention": {"rope_theta": 500.0}}]
SCALED = [{"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0}]
LAYERS_OF_2 = [["full_attention", "full_attention"], ["sliding_attention", "sliding_attention"], ["sliding_attention", "chunked_attention"]]
LAYERS_OF_4 = [["full_attention"] * 4, ["sliding_attention"] * 4, ["full_attention", "sliding_attention"] * 2]
GPT_KEYS = {"hidden_size": [32, 16], "num_attention_heads": [4, 2], "num_hidden_layers": [2, 1], "max_position_embeddings": [256, 128],
            "n_inner": [None, 64], "intermediate_size": [64], "activation_function": ["gelu", "relu", "silu", "gelu_fast", "tanh", "quick_gelu"],
            "layer_norm_epsilon": [0.1], "add_cross_attention": [True], "attn_pdrop": [0.5], "summary_type": ["mean"], "num_key_value_heads": [1]}
GEMMA_KEYS = {"rope_parameters": ROPES_BY_TYPE, "rope_local_base_freq": [77.0, None], "sliding_window_pattern": [1, 2, 6], "_sliding_window_pattern": [1],
              "layer_types": LAYERS_OF_2, "cache_implementation": ["hybrid"], "query_pre_attn_scalar": [8, 20.5]}
MODERN_KEYS = {"rope_parameters": ROPES_BY_TYPE, "layer_types": LAYERS_OF_4, "global_attn_every_n_layers": [1, 2, 3], "global_rope_theta": [77.0],
               "local_rope_theta": [77.0], "local_attention": [8, 9, 1, 0, -1], "classifier_pooling": ["mean", "cls", "last"], "norm_bias": [True], "classifier_bias": [True],
               "classifier_activation": ["silu", "relu", "tanh"], "attention_bias": [True], "mlp_bias": [True], "norm_eps": [0.1], "reference_compile": [True],
               "position_embedding_type": ["absolute", "sans_pos"], "tie_word_embeddings": [False], "cls_token_id": [5], "embedding_dropout": [0.5],
               "decoder_bias": [False], "deterministic_flash_attn": [True], "sparse_prediction": [True]}
DEBERTA_KEYS = {"pos_att_type": ["c2p|p2c", "c2p", ["c2p"], ["p2c"], [], "", "C2P|P2C", ["p2p"], "c2p | p2c", "none"], "relative_attention": [True, False],
                "max_relative_positions": [-1, 0, 1, 4, 64, 130], "position_buckets": [-1, 0, 4, 16, 20, 32, 256], "position_biased_input": [True, False],
                "type_vocab_size": [0, 1, 2], "share_att_key": [True, False], "norm_rel_ebd": ["none", "layer_norm", "LAYER_NORM|x"],
                "conv_kernel_size": [0, 3, 2, 5, -1], "conv_act": ["gelu", "relu", "linear"], "conv_groups": [1, 2, 3], "pooler_dropout": [0.5], "pooler_hidden_act": ["tanh", "relu", "gelu", "silu"],
                "pooler_hidden_size": [32, 16], "embedding_size": [32, 16], "attention_head_size": [8, 4], "legacy": [False], "cls_dropout": [0.5],
                "talking_head": [True], "hidden_act": ["tanh", "gelu_python", "linear", "mish"]}
BERT_KEYS = {"position_embedding_type": ["relative_key_query", "rotary"], "embedding_size": [32, 16], "hidden_act": ["swish", "gelu_fast", "gelu_python", "tanh", "quick_gelu", "linear"],
             "type_vocab_size": [0, 1, 2, 4], "is_decoder": [True, False], "layer_norm_eps": [1e-5]}
ROPE_KEYS = {"rope_parameters": SCALED, "rotary_pct": [0.5, 1.0], "rotary_emb_base": [77.0], "rope_pct": [0.5]}
OWN = {  # model_type → key → values
    "ministral3": {"rope_parameters": [rope(77.0, llama_4_scaling_beta=0.1), rope(77.0, original_max_position_embeddings=16), {"rope_type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16,
                                        "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}], "llama_4_scaling_beta": [0.1]},
    "gemma3_text": GEMMA_KEYS,
    "gemma3": GEMMA_KEYS | {"mm_tokens_per_image": [9], "image_token_index": [5, 511, 600], "boi_token_index": [5], "text_config": [{}]},
    "olmo": ROPE_KEYS | {"clip_qkv": [None, 0.5, 8.0]},
    "olmo3": {"rope_parameters": ROPES_BY_TYPE + SCALED, "layer_types": LAYERS_OF_4, "sliding_window": [8]},
    "phi": ROPE_KEYS | {"qk_layernorm": [True, False], "resid_pdrop": [0.5], "embd_pdrop": [0.5], "hidden_act": ["gelu_new", "gelu_fast"]},
    "phi3": ROPE_KEYS | {"original_max_position_embeddings": [64, 4096], "resid_pdrop": [0.5], "rope_scaling": [
        {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}, {"type": "su", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4},
        {"type": "yarn", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}, {"type": "longrope", "short_factor": [1.5] * 2, "long_factor": [3.0] * 2}]},
    "glm": ROPE_KEYS, "glm4": ROPE_KEYS, "helium": ROPE_KEYS,
    "hunyuan_v1_dense": ROPE_KEYS | {"rope_scaling": [{"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}],
                         "use_qk_norm": [True, False], "use_cla": [True], "cla_share_factor": [2], "attention_head_dim": [8, 16], "eod_token_id": [3], "org_vocab_size": [3]},
    "nemotron": ROPE_KEYS | {"hidden_act": ["relu2"], "norm_eps": [0.1], "rope_percent": [0.25], "rope_percentage": [0.25]},
    "starcoder2": ROPE_KEYS | {"norm_epsilon": [0.1], "use_bias": [True, False], "norm_type": ["rms_norm"], "mlp_type": ["gated"], "hidden_act": ["gelu_pytorch_tanh"]},
    "stablelm": ROPE_KEYS | {"use_qkv_bias": [True, False], "qk_layernorm": [True, False], "use_parallel_residual": [True, False], "norm_eps": [0.1]},
    "persimmon": ROPE_KEYS | {"qk_layernorm": [True, False], "hidden_act": ["relu2", "relu"], "num_key_value_heads": [2]},
    "gpt_neox": ROPE_KEYS | {"use_parallel_residual": [True, False], "attention_bias": [True, False], "hidden_act": ["gelu_fast", "gelu_new"]},
    "gptj": GPT_KEYS | {"rotary_dim": [None, 0, 2, 3, 4, 8, 64], "rotary": [False]},
    "gpt2": GPT_KEYS | {"scale_attn_weights": [True, False], "scale_attn_by_inverse_layer_idx": [True, False], "reorder_and_upcast_attn": [True], "n_ctx": [128]},
    "gpt_bigcode": GPT_KEYS | {"scale_attn_weights": [True, False], "multi_query": [True, False], "attention_softmax_in_fp32": [False], "scale_attention_softmax_in_fp32": [False],
                               "validate_runner_input": [True], "pre_allocate_kv_cache": [True]},
    "gpt_neo": {"attention_types": [[[["global"], 2]], [[["local"], 2]], [[["global", "local"], 2]], [[["global"], 1], [["local"], 1]], []], "attention_layers": [["global", "global"], ["local", "local"]],
                "window_size": [4, 1, 0], "num_attention_heads": [4, 2], "num_hidden_layers": [2, 1], "intermediate_size": [None, 64], "activation_function": ["gelu", "relu"],
                "layer_norm_epsilon": [0.1], "hidden_size": [16], "n_embd": [32, 16]},
    "opt": {"do_layer_norm_before": [True, False], "_remove_final_layer_norm": [True, False], "word_embed_proj_dim": [16, 32], "enable_bias": [True, False],
            "layer_norm_elementwise_affine": [True, False], "activation_function": ["gelu", "relu", "silu"], "intermediate_size": [64], "layerdrop": [0.5],
            "prefix": ["</s>"], "ffn_dim": [64]},
    "falcon": ROPE_KEYS | {"num_ln_in_parallel_attn": [None, 1, 2, 0], "multi_query": [True, False, None], "new_decoder_architecture": [True, False, None], "parallel_attn": [True, False, None],
                           "alibi": [True, False], "bias": [True, False], "num_kv_heads": [1, 2, 4, 3], "ffn_hidden_size": [64], "activation": ["gelu", "relu", "gelu_new"],
                           "n_embed": [32, 16], "n_head": [2], "n_layer": [1], "num_key_value_heads": [2], "n_head_kv": [2], "layer_norm_epsilon": [0.1], "head_dim": [16],
                           "apply_residual_connection_post_layernorm": [True]},
    "openai-gpt": GPT_KEYS | {"afn": ["gelu", "relu", "silu", "swish", "gelu_new"], "n_special": [3], "predict_special_tokens": [True], "n_ctx": [128]},
    "biogpt": {"scale_embedding": [True, False], "hidden_act": ["relu", "gelu_new"], "layer_norm_eps": [0.1], "layerdrop": [0.5], "activation_dropout": [0.5], "num_key_value_heads": [2], "head_dim": [16]},
    "cohere_compass_text": {"rope_parameters": ROPES_BY_TYPE + SCALED + [{"full_attention": None, "sliding_attention": None}], "pooling": ["eos", "bos", "mean", "cls", None], "logit_scale": [0.5], "sliding_window": [8, None],
                            "layer_types": LAYERS_OF_4, "attention_bias": [True], "head_dim": [8, 16], "use_qk_norm": [True], "sliding_window_pattern": [2], "layer_norm_eps": [0.1]},
    "mpnet": BERT_KEYS | {"relative_attention_num_buckets": [32, 16, 40], "pad_token_id": [0, 1, 3]},
    "roformer": BERT_KEYS | {"rotary_value": [True, False], "embedding_size": [16, 32, None], "hidden_act": ["relu", "tanh"], "rope_theta": [77.0]},
    "ultrabert": ROPE_KEYS | {"rope_parameters": ROPES_BY_TYPE + SCALED, "rope_theta": [[77.0, 77.0, 500.0, 77.0], 77.0], "attention_windows": [[8, 8, 0, 8], [None, 4, 0, 4], [0] * 4], "layer_types": LAYERS_OF_4,
                              "sliding_window": [8, None], "classifier_pooling": ["mean", "cls", "late", "bos"], "attention_bias": [True], "mlp_bias": [True], "prediction_head_size": [16], "global_attn_every_n_layers": [2]},
    "bloom": {"n_embed": [32, 16], "n_embd": [16], "num_attention_heads": [4, 2], "num_hidden_layers": [2, 1], "n_inner": [64], "apply_residual_connection_post_layernorm": [True, False],
              "slow_but_exact": [True], "pretraining_tp": [2], "offset_alibi": [100], "seq_length": [16, 2048], "layer_norm_epsilon": [0.1], "skip_bias_add": [True],
              "masked_softmax_fusion": [True], "bias_dropout_fusion": [True], "unk_token_id": [0], "attention_softmax_in_fp32": [True], "alibi": [False]},
    "mpt": {"num_attention_heads": [4, 2], "hidden_size": [32, 16], "num_hidden_layers": [2, 1], "expansion_ratio": [2, 4], "max_position_embeddings": [8], "max_seq_len": [8],
            "layer_norm_epsilon": [0.1], "learned_pos_emb": [True, False], "no_bias": [True, False], "logit_scale": [2.0, "inv_sqrt_d_model"], "norm_type": ["rmsnorm", "layernorm"],
            "embedding_fraction": [0.5], "init_config": [{}], "attn_config": [{}, {"alibi": True, "clip_qkv": None, "prefix_lm": False}, {"attn_impl": "flash"}], "ffn_config": [{"ffn_type": "mptglu"}], "resid_pdrop": [0.5],
            "emb_pdrop": [0.5], "verbose": [0], "ffn_hidden_size": [16]},
    "modernbert-decoder": MODERN_KEYS, "modernbert": MODERN_KEYS,
    "distilbert": {"activation": ["gelu", "relu", "silu", "gelu_new"], "sinusoidal_pos_embds": [True, False], "hidden_size": [32, 16], "num_attention_heads": [4, 2], "num_hidden_layers": [2, 1],
                   "intermediate_size": [64], "qa_dropout": [0.5], "seq_classif_dropout": [0.5], "tie_weights_": [True], "pad_token_id": [0, 3], "output_past": [True], "dropout": [0.5]},
    "electra": BERT_KEYS | {"embedding_size": [16, 32], "summary_type": ["first", "mean"], "summary_use_proj": [True, False], "summary_activation": ["gelu", "tanh"],
                            "generator_hidden_size": [0.25]},
    "albert": BERT_KEYS | {"embedding_size": [16, 32], "num_hidden_groups": [1, 2, 3, 4, 0], "inner_group_num": [1, 2, 0], "classifier_dropout_prob": [0.5], "down_scale_factor": [2], "gap_size": [1],
                           "net_structure_type": [1], "num_memory_blocks": [1], "layers_to_keep": [[0]]},
    "rembert": BERT_KEYS | {"input_embedding_size": [16, 32], "output_embedding_size": [32], "embedding_size": [16], "classifier_dropout_prob": [0.5]},
    "ernie": BERT_KEYS | {"use_task_id": [True, False], "task_type_vocab_size": [3, 1, 0], "task_id": [1]},
    "megatron-bert": BERT_KEYS, "roberta-prelayernorm": BERT_KEYS, "camembert": BERT_KEYS, "xlm-roberta-xl": BERT_KEYS, "data2vec-text": BERT_KEYS,
    "deberta": DEBERTA_KEYS, "deberta-v2": DEBERTA_KEYS,
    "eurobert": ROPE_KEYS | {"classifier_pooling": ["mean", "bos", "late", "cls"], "attention_bias": [True], "mlp_bias": [True], "mask_token_id": [5], "pretraining_tp": [2], "clf_pooling": ["bos"]},
    "nomic_bert": BERT_KEYS | ROPE_KEYS | {"head_dim": [8, 16], "n_embd": [16], "n_head": [2], "n_layer": [1], "rotary_emb_fraction": [0.5, 1.0], "activation_function": ["gelu", "swiglu"],
                                           "qkv_proj_bias": [True], "mlp_fc1_bias": [True], "prenorm": [True], "n_inner": [64], "n_positions": [64], "layer_norm_epsilon": [0.1]},
    "gte": BERT_KEYS | ROPE_KEYS | {"type_vocab_size": [0, 1, 2], "layer_norm_type": ["rms_norm"], "pack_qkv": [False], "unpad_inputs": [True], "logn_attention_scale": [True]},
    "jina_embeddings_v3": BERT_KEYS | ROPE_KEYS | {"rotary_emb_base": [77.0], "use_flash_attn": [True], "lora_rank": [4], "emb_pooler": ["mean"]},
}
ATTENTION_OF_MPT = {"attn_type": ["multiquery_attention", "multihead_attention"], "clip_qkv": [0.5], "softmax_scale": [0.5], "prefix_lm": [True], "qk_ln": [True],
                    "attn_uses_sequence_id": [True], "alibi": [False, True], "alibi_bias_max": [4], "attn_impl": ["flash"], "attn_pdrop": [0.5], "kv_n_heads": [2],
                    "rope": [True], "sliding_window_size": [4]}
OLD_FORMS = [  # what files of transformers 4 say in place of rope_parameters; and with keys that are left out besides
    ((), changes) for changes in [
        {"rope_theta": 77.0}, {"rope_theta": 77, "rope_scaling": None}, {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 77.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                               "original_max_position_embeddings": 32}},
        {"rope_theta": 77.0, "rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 50.0}}, {"rope_theta": 77.0, "rope_scaling": {"type": "dynamic", "factor": 2.0},
                                                                                                    "max_position_embeddings": 60},
        {"rope_theta": 77.0, "partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0}, {"partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rotary_pct": 0.5, "rotary_emb_base": 77}, {"rotary_pct": 1.0, "rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, {"rotary_pct": 1.0, "rotary_emb_base": 33.0, "rope_theta": 77.0},
        {"rope_theta": 77.0, "rope_local_base_freq": 33.0}, {"rope_local_base_freq": 33.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        {"global_rope_theta": 77.0, "local_rope_theta": 33.0}, {"global_rope_theta": 77.0}, {"local_rope_theta": 33.0},
        {"global_rope_theta": 77.0, "local_rope_theta": 33.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 77.0, "rope_scaling": {"rope_type": "longrope", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}, "original_max_position_embeddings": 64},
        {"rope_theta": 77.0, "rope_scaling": {"rope_type": "longrope", "short_factor": [1.5] * 2, "long_factor": [3.0] * 2, "factor": 2.0}, "partial_rotary_factor": 0.5,
         "original_max_position_embeddings": 64}]
] + [(("layer_types",), changes) for changes in [
    {"sliding_window_pattern": 2, "rope_theta": 77.0, "rope_local_base_freq": 33.0}, {"sliding_window_pattern": 3}, {"_sliding_window_pattern": 2},
    {"global_attn_every_n_layers": 2, "global_rope_theta": 77.0}, {"rope_theta": 77.0}, {"sliding_window": None}]]
