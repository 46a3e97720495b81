#!/usr/bin/env python3
"""Which experts transformers' routers choose, and with what weights, for some logits: tests/data/routing.json.

    pip install -r tests/reference/requirements.txt
    python tests/reference/routing.py

A router's weight is the identity here, so that the hidden state is the logits. Of each router the rows are random ones, some
far apart (what is small becomes zero), some all below zero, and some near zero. Of equal scores torch takes what its partial sort
comes upon: no row has such that decide, unless they weigh nothing. Experts are listed in ascending order.
"""
import json
import pathlib

import torch
from transformers.models.axk2.modeling_axk2 import AXK2TopkRouter
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1Gate
from transformers.models.jetmoe.modeling_jetmoe import JetMoeTopKGating
from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

EXPERTS = 8


class Config(dict):
    __getattr__ = dict.__getitem__


CONFIG = Config(num_experts_per_tok=3, num_experts=EXPERTS, num_local_experts=EXPERTS, n_routed_experts=EXPERTS, hidden_size=EXPERTS, moe_topk=3,
                norm_topk_prob=False, routed_scaling_factor=2.5, n_group=4, topk_group=2, topk_method="group_limited_greedy",
                router_jitter_noise=0.05, input_jitter_noise=0.0)
CORRECTION = [0.3, -0.9, 0.0, -1.2, 0.1, -0.7, 0.2, -1.1]
# without what is below zero, and so below the zeros of groups that are hidden
ABOVE_ZERO = [0.3, 0.1, 0.0, 0.6, 0.1, 0.5, 0.2, 0.4]
# they are more than all of these
BELOW_ZERO = [-2.9, -3.0, -2.8, -3.2, -3.5, -2.7, -3.3, -3.1]

CASES = {
    "mixtral": (MixtralTopKRouter, {}, None),
    "qwen3_moe": (Qwen3MoeTopKRouter, {}, None),
    "qwen3_moe, norm_topk_prob": (Qwen3MoeTopKRouter, {"norm_topk_prob": True}, None),
    "hunyuan_v1_moe": (HunYuanMoEV1Gate, {}, None),
    "gpt_oss": (GptOssTopKRouter, {}, None),
    "phimoe": (PhimoeTopKRouter, {}, None),
    "deepseek_v2, greedy": (DeepseekV2TopkRouter, {"topk_method": "greedy"}, None),
    "deepseek_v2": (DeepseekV2TopkRouter, {}, None),
    "deepseek_v2, one group": (DeepseekV2TopkRouter, {"topk_group": 1}, None),
    "deepseek_v3": (DeepseekV3TopkRouter, {}, CORRECTION),
    "deepseek_v3, norm_topk_prob": (DeepseekV3TopkRouter, {"norm_topk_prob": True}, CORRECTION),
    "axk2": (AXK2TopkRouter, {"norm_topk_prob": True}, ABOVE_ZERO),
    "axk2, below zero": (AXK2TopkRouter, {"topk_group": 3, "num_experts_per_tok": 6}, BELOW_ZERO),
    "axk2, no groups": (AXK2TopkRouter, {"norm_topk_prob": True, "n_group": None}, CORRECTION),
    "mistral4": (Mistral4TopkRouter, {"norm_topk_prob": True}, None),
}


def rows():
    generator = torch.Generator().manual_seed(7)
    random = torch.randn((12, EXPERTS), generator=generator)
    return torch.cat([random, 0.01 * random[:3], random[3:5] - 8.0, 3.0 + 0.1 * random[5:8], 60.0 * random[8:10]])


@torch.no_grad()
def run(kind, changes, correction):
    router = kind(Config(CONFIG | changes)).float().eval()
    for name, parameter in list(router.named_parameters()) + list(router.named_buffers()):
        if name.endswith("weight"):
            parameter.copy_(torch.eye(EXPERTS))
        elif name.endswith("e_score_correction_bias"):
            parameter.copy_(torch.tensor(correction))
        else:
            parameter.zero_()
    logits, weights, experts = router(rows())
    assert torch.equal(logits, rows())
    order = experts.argsort(-1)
    return experts.gather(-1, order).tolist(), weights.gather(-1, order).tolist()


@torch.no_grad()
def jetmoe():
    gating = JetMoeTopKGating(EXPERTS, EXPERTS, 3).eval()
    gating.layer.weight.copy_(torch.eye(EXPERTS))
    places, of_rows, gates, counts, _ = gating(rows())
    experts = torch.repeat_interleave(torch.arange(EXPERTS), torch.tensor(counts))
    chosen = [[] for _ in rows()]
    for row, expert, gate in zip(of_rows.tolist(), experts.tolist(), gates.tolist()):
        chosen[row].append((expert, gate))
    return [[e for e, _ in row] for row in chosen], [[w for _, w in row] for row in chosen]


def main():
    cases = {name: (case[2], *run(*case)) for name, case in CASES.items()} | {"jetmoe": (None, *jetmoe())}
    lines = [json.dumps({"name": name, "correction": correction, "experts": experts, "weights": weights})
             for name, (correction, experts, weights) in cases.items()]
    head = f'"logits": {json.dumps(rows().tolist())}'
    path = pathlib.Path(__file__).resolve().parent.parent / "data" / "routing.json"
    path.write_text("{" + head + ',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
