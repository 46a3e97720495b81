#!/usr/bin/env bash
# jinja2 3.1.6: the `else` of a `for` runs although the loop iterated, if no iteration came to its end.
#
# The documentation says that `else` is rendered where no iteration took place. The compiled loop notes an iteration at the end
# of its body, which `continue` and `break` (of jinja2.ext.loopcontrols, which transformers turns on for chat templates) jump
# over. So a template that skips system turns with `continue` renders its "no messages" text for a conversation of system
# turns alone, and one turn that is not skipped makes it go away. Python's own `for … else` does neither.
#
# Seen: [] none, [system] none, [system, user] [user], [user, system] [user]; with break, [system] none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jinja2==3.1.6
"$folder/venv/bin/python" - <<'PYTHON'
from jinja2 import Environment

environment = Environment(extensions=["jinja2.ext.loopcontrols"])


def render(leave, *roles):
    loop = "{% for role in roles %}{% if role == 'system' %}{% LEAVE %}{% endif %}[{{ role }}]{% else %}none{% endfor %}"
    return environment.from_string(loop.replace("LEAVE", leave)).render(roles=roles)


seen = [render("continue"), render("continue", "system"), render("continue", "system", "user"),
        render("continue", "user", "system"), render("break", "system")]
print(seen)
assert seen == ["none", "none", "[user]", "[user]", "none"], seen
PYTHON
