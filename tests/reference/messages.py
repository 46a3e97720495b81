"""What transformers 5.23.0 makes of messages: the expected values in src/text/{conversation,template,mod}.rs.

    python tests/reference/messages.py
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

MESSAGES = [
    {"role": "user", "content": "a"},
    {"content": "a", "role": "user", "name": None},
    {"role": "assistant", "content": None, "tool_calls": [{"id": None, "n": 1.0, "m": 1}]},
    {"role": "assistant", "reasoning": "r", "content": "a"},
    {"role": "assistant", "reasoning_content": "r", "content": "a"},
    {"role": "assistant", "thinking": "t", "content": "a"},
    {"role": "assistant", "thinking": "t", "reasoning_content": "", "content": "a"},
]
TEMPLATE = "{{ tools | tojson }} {{ documents }} {{ x }} {{ bos_token }} {{ add_generation_prompt }}"
ARGUMENTS = [
    (None, {}),
    ([], {"x": 1, "bos_token": "<b>"}),
    ([{"b": 1.0, "a": {"d": 2, "c": None}}], {"documents": [{"text": "t"}], "add_generation_prompt": True}),
]


def render(messages, template, tools=None, **arguments):
    """As `apply_chat_template` calls it: keys without a value are left out first."""
    messages = [{k: v for k, v in message.items() if v is not None} for message in messages]
    return render_jinja_template([messages], tools=tools, chat_template=template, **arguments)[0][0]


def named():
    """Several templates by name, without tools, with none of them, and with one; then the default alone."""
    default = "{{ bos_token }}<u>{{ messages[0].content }}</u>{{ tools is none }}"
    tool_use = "<a>{{ messages[0].content }}</a>{{ tools | length }}"
    several = {"default": default, "rag": "no", "tool_use": tool_use}
    for template in [several, default]:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", chat_template=template)
        for tools in [None, [], [{"name": "f"}]]:
            print(tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tools=tools, tokenize=False))


def show():
    for message in MESSAGES:
        print(render([message], "{{ messages[0] | tojson(separators=(',', ':')) }}"))
    for tools, arguments in ARGUMENTS:
        arguments = {"bos_token": "<s>", **arguments}
        print(render([{"role": "user", "content": "hi"}], TEMPLATE, tools, **arguments))
    named()


if __name__ == "__main__":
    show()
