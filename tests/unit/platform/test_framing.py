"""Frames against transformers' own rendering: the default model and templates in the style of other families."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from laban.actors.errors import InvalidInput, UnsupportedModel
from laban.actors.framing import Framing, derive_framing

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")

CHATML = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""  # noqa: E501

LLAMA31 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + "26 Jul 2024" + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""  # noqa: E501

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}"""

QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1, multi_step_tool=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""  # noqa: E501

GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""  # noqa: E501

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "llama3.1": LLAMA31,
    "gemma": GEMMA,
    "gemma3": GEMMA3,
    "mistral": MISTRAL,
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
}
ADDED = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>", "<start_of_turn>",
         "<end_of_turn>", "<bos>", "[INST]", "[/INST]", "<s>", "</s>", "<think>", "</think>"]  # fmt: skip
SPECIALS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "llama3.1": ("<|begin_of_text|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<end_of_turn>"),
    "gemma3": ("<bos>", "<end_of_turn>"),
    "mistral": ("<s>", "</s>"),
    "qwen2.5": ("<|im_start|>", "<|im_end|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
}
TEXTS = ["What is 12 x 34?", "  padded \n", "\n\n- a line\n", "ete 日本 🙂", ".", "a", "I think [so]"]


@pytest.fixture(scope="module")
def reference(default_folder: Path) -> Any:
    """transformers' tokenizer of the default model with every family's special tokens."""
    loaded = transformers.AutoTokenizer.from_pretrained(default_folder)
    loaded.add_tokens([transformers.AddedToken(token, special=True, normalized=False) for token in ADDED])
    return loaded


@pytest.fixture(scope="module")
def folders(default_folder: Path, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {"smollm2": default_folder}
    saved = tmp_path_factory.mktemp("tokenizer")
    reference.save_pretrained(saved)
    config = json.loads((saved / "tokenizer_config.json").read_text())
    for name, template in TEMPLATES.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "tokenizer.json").symlink_to(saved / "tokenizer.json")
        bos, eos = SPECIALS[name]
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": bos, "eos_token": eos}))
        (folder / "chat_template.jinja").write_text(template)
        made[name] = folder
    return made


FAMILIES = ["smollm2", *TEMPLATES]


@pytest.fixture(scope="module")
def framings(folders: dict[str, Path]) -> dict[str, Framing]:
    return {name: derive_framing(folder) for name, folder in folders.items()}


def framed(framing: Framing, turns: list[tuple[str, str]]) -> list[int]:
    ids = list(framing.root(turns[0][0]))
    for number, (role, text) in enumerate(turns):
        ids.extend(framing.message(role, text, first=number == 0))
    return [*ids, *framing.header("assistant")]


def conversations(system: bool) -> list[list[tuple[str, str]]]:
    made = []
    for num_turns, shift in itertools.product((1, 3, 5), range(len(TEXTS))):
        roles = [*(["system"] if system else []), *("user" if n % 2 == 0 else "assistant" for n in range(num_turns))]
        made.append([(role, TEXTS[(n + shift) % len(TEXTS)]) for n, role in enumerate(roles)])
    return made


def expected(reference: Any, family: str, turns: list[tuple[str, str]]) -> list[int]:
    """What transformers makes of the conversation with the family's template."""
    reference.bos_token, reference.eos_token = SPECIALS.get(family, SPECIALS["chatml"])
    messages = [{"role": role, "content": text} for role, text in turns]
    template = TEMPLATES.get(family)  # None: the folder's own
    ids = reference.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, return_dict=False)
    return list(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_tokenize_as_the_template_does(family, framings, reference) -> None:  # type: ignore[no-untyped-def]
    for turns in conversations(system=False):
        assert framed(framings[family], turns) == expected(reference, family, turns), turns


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gemma", "gemma3", "mistral")])
def test_with_a_system_message(family, framings, reference) -> None:  # type: ignore[no-untyped-def]
    for turns in conversations(system=True):
        assert framed(framings[family], turns) == expected(reference, family, turns), turns


NOTES = {
    "smollm2": [],
    "chatml": [],
    "llama3": [],
    "llama3.1": ["opens the conversation, and only there"],
    "gemma": ["no system turn of its own", "take turns"],
    "gemma3": ["it puts the text into a user turn", "take turns"],
    "mistral": ["no system turn of its own", "take turns"],
    "qwen2.5": [],
    "qwen3": ["frames the last answer otherwise", "drops the thinking of past turns"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_notes_say_where_frames_differ(family: str, framings: dict[str, Framing]) -> None:
    notes = framings[family].notes
    assert len(notes) == len(NOTES[family]), notes
    for note, part in zip(notes, NOTES[family], strict=True):
        assert part in note


def test_roots(framings: dict[str, Framing]) -> None:
    decode = {name: framing.tokenizer.decode for name, framing in framings.items()}
    smollm2 = framings["smollm2"]
    assert decode["smollm2"](smollm2.root("user")).startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert smollm2.root("assistant") == smollm2.root("user")
    assert smollm2.root("system") == ()
    for name in ("gemma", "gemma3"):
        assert {decode[name](framings[name].root(role)) for role in ("system", "user")} == {"<bos>"}
    assert "You are Qwen" in decode["qwen2.5"](framings["qwen2.5"].root("user"))
    assert framings["chatml"].root("user") == ()
    dated = decode["llama3.1"](framings["llama3.1"].root("user"))
    assert dated.startswith("<|begin_of_text|>")
    assert "26 Jul 2024" in dated
    assert dated.endswith("<|eot_id|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_message_is_closed_like_a_given_one(family: str, framings: dict[str, Framing]) -> None:
    framing = framings[family]
    whole = framing.message("assistant", "yes")
    stop = framing.tokenizer.token_id(SPECIALS.get(family, ("", "<|im_end|>"))[1])
    assert framing.stop_token_ids[0] == stop
    closed = framing.terminator("assistant", after_stop_token=False)
    assert whole[-len(closed) :] == closed
    assert closed == (stop, *framing.terminator("assistant", after_stop_token=True))
    header = framing.header("assistant")
    if family == "mistral":  # the space before an answer is the model's to make
        assert header == ()
    else:  # as text: white space before a text may merge otherwise than alone
        assert framing.tokenizer.decode(whole).startswith(framing.tokenizer.decode(header))


def test_names_are_a_first_line(framings: dict[str, Framing]) -> None:
    framing = framings["smollm2"]
    text = framing.tokenizer.decode(framing.message("user", "hi", name="bob"))
    assert text == "<|im_start|>user\nbob:\nhi<|im_end|>\n"
    text = framing.tokenizer.decode(framing.header("assistant", name="bob", prefill="Solution #3:\n"))
    assert text == "<|im_start|>assistant\nbob:\nSolution #3:\n"


def test_all_roles_can_open_and_close(framings: dict[str, Framing]) -> None:
    for family, framing in framings.items():
        for role in ("system", "user"):
            assert framing.header(role), family
            assert framing.terminator(role, after_stop_token=False), family


def test_who_starts_otherwise_is_said(framings: dict[str, Framing]) -> None:
    found = set()
    for family, framing in framings.items():
        for role in framing.frames:
            differs = framing.message(role, "some text", first=True) != framing.message(role, "some text")
            assert framing.starts_otherwise(role) >= differs, (family, role)
            found.add(differs)
    assert found == {True, False}, "there are both"


def test_unknown_role(framings: dict[str, Framing]) -> None:
    for ask in (framings["smollm2"].root, framings["smollm2"].header):
        with pytest.raises(InvalidInput, match=r"role: must be one of system, user, assistant \(got 'tool'\)"):
            ask("tool")


def test_pickles(framings: dict[str, Framing]) -> None:
    framing = framings["llama3.1"]
    again = pickle.loads(pickle.dumps(framing))
    assert again.message("system", "x", first=True) == framing.message("system", "x", first=True)
    assert (again.notes, again.stop_token_ids) == (framing.notes, framing.stop_token_ids)


def test_eos_ids_of_the_generation_config(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["gemma"], folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    framing = derive_framing(folder)
    assert framing.stop_token_ids == (framing.tokenizer.token_id("<end_of_turn>"), 0, 1)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no chat today') }}", "no chat today"),
        ("{% for m in messages %}<turn>{% endfor %}", "does not show"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "once and in its place"),
        ("{{ messages[0].content }}", "two user turns"),
        ("{% for m in messages %}", "not a valid template"),
        ("{{ messages[5].content.x.y }}", "cannot be framed"),
    ],
)
def test_templates_that_cannot_be_framed(folders: dict[str, Path], tmp_path: Path, template: str, reason: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["chatml"] / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedModel, match=reason):
        derive_framing(tmp_path)


def test_no_template(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["chatml"] / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(UnsupportedModel, match="no chat template"):
        derive_framing(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    assert derive_framing(tmp_path).header("assistant")
    listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert derive_framing(tmp_path).header("assistant")


def test_templates_run_in_a_sandbox(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["chatml"] / "tokenizer.json", tmp_path / "tokenizer.json")
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (tmp_path / "chat_template.jinja").write_text(attack)
    with pytest.raises(UnsupportedModel, match="cannot be framed"):
        derive_framing(tmp_path)
