"""huggingface_hub's InferenceClient at a URL, as text-embeddings-inference is asked."""
import os

os.environ["HF_HUB_OFFLINE"] = "0"  # it would refuse loopback too

from conftest import TEXTS, recorded
from huggingface_hub import InferenceClient


def test_what_it_sends(recorder):
    seen = recorder([[{"label": "LABEL_0", "score": 0.5}]])
    [found] = InferenceClient().text_classification(TEXTS[0]["rendered"].removeprefix("<|begin_of_text|>"),
                                                    model=f"http://{seen.address}/predict")
    assert found.score == 0.5
    [request] = seen.requests
    recorded("huggingface_hub-predict", "huggingface_hub", request, ["/0/0/score"], [TEXTS[0]["reward"]],
             "special tokens are added by the server; without raw_scores TEI answers a sigmoid, so this must be refused, "
             "or asked with ?raw_scores=true")
