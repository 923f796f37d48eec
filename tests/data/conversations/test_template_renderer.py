"""Templates of strangers: jinja2 as in transformers, hostile ones end with one line within the limits."""

import os
import time

import pytest

from llmcli.data.child_process import ChildProcess
from llmcli.data.conversations import template_renderer
from llmcli.data.conversations.messages import Message
from llmcli.data.conversations.template_renderer import TemplateRefusalError, render
from llmcli.errors import LLMError

pytestmark = pytest.mark.slow  # starts processes

MESSAGES = [Message("user", "Hi"), Message("assistant", "Hello 🍎")]


def text(source: str, messages: list[Message] = MESSAGES, **variables: str) -> str:
    return render(source, variables, messages, True)[0]


def test_a_template_is_rendered_as_by_transformers() -> None:
    for source, expected in [
        ("{% for m in messages %}[{{ m.role }}:{{ m['content'] }}]{% endfor %}", "[user:Hi][assistant:Hello 🍎]"),
        ("{{ bos_token }}{{ messages[-1].content[:5].upper() }}", "<s>HELLO"),
        ("  {% if add_generation_prompt %}\nyes\n  {% endif %}\n", "yes\n"),  # trim_blocks and lstrip_blocks
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ dict(a=1) | tojson(indent=1) }}", '{\n "a": 1\n}'),
        ("{{ tools is none }}{{ undefined_name }}{{ strftime_now('%Y') | length }}", "True4"),
        ("{{ 'a\\r\\nb' }}", "a\r\nb"),
        ("", ""),
    ]:
        assert text(source, bos_token="<s>") == expected, source


def test_what_a_template_says_itself_is_shown() -> None:
    with pytest.raises(TemplateRefusalError, match=r"refuses these messages: Roles must alternate!$"):
        text("{{ raise_exception('Roles\n must alternate!') }}")


HOSTILE = {
    "never ends": ("{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}"
                   "{% endfor %}{% endfor %}", "over 0.5 seconds"),
    "one number": ("{{ 9 ** (9 ** 9) }}", "over 0.5 seconds"),
    "a long text": ("{{ 'a' * 10 ** 9 }}", "over 512 MB|ended|over 0.5 seconds|writes over"),
    "a range": ("{% for i in range(10 ** 9) %}a{% endfor %}", "[Rr]ange too big"),
    "much output": ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", r"writes over 1,048,5\d\d"),
    "attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "format": ("{{ '{0.__class__.__base__}'.format(messages) }}", "unsafe"),
    "an internal of a namespace": ("{% set ns = namespace(__class__=1) %}{{ ns }}", "unsafe"),
    "changes its input": ("{{ messages.append(1) }}", "unsafe|not safely"),
    "imports": ("{% import 'os' as os %}", "no loader|cannot be rendered"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion|ended"),
    "deep nesting": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "recursion|ended"),
    "an unknown tag": ("{% launch %}", "unknown tag 'launch'"),
    "an error of Python": ("{{ 1 / 0 }}", "division by zero"),
}  # fmt: skip


def test_a_hostile_template_is_one_line_within_the_limits(monkeypatch, no_hang: None) -> None:
    for name in HOSTILE:
        source, message = HOSTILE[name]
        monkeypatch.setattr(template_renderer, "SECONDS", 0.5 if "over 0.5 seconds" in message else 60.0)
        with pytest.raises(LLMError, match=message) as caught:
            text(source)
        assert caught.value.exit_code == 1 and "\n" not in str(caught.value) and len(str(caught.value)) < 500, name
        monkeypatch.setattr(template_renderer, "SECONDS", 60.0)
        assert text("{{ messages[0].content }}") == "Hi", name  # the next one is rendered


def test_the_process_ends_with_this_one(tmp_path) -> None:
    import subprocess
    import sys

    code = (
        "from llmcli.data.conversations import template_renderer as r\n"
        "print(r.render('{{ 1 + 1 }}', {}, [], False)[0], r._worker._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result, pid = done.stdout.split()
    assert result == "2" and not done.stderr
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.kill(int(pid), 0)
            time.sleep(0.05)


def test_a_module_of_the_working_directory_is_not_imported(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(template_renderer, "_worker", ChildProcess("llmcli.data.conversations.template_worker", ""))
    assert text("a") == "a"
    template_renderer._worker.stop()


@pytest.mark.skipif(not hasattr(os, "getpgid"), reason="Windows has no process groups")
def test_ctrl_c_in_the_terminal_does_not_reach_the_process() -> None:
    text("a")
    process = template_renderer._worker._process
    assert process and os.getpgid(process.pid) == process.pid != os.getpgid(0)
