"""A model's chat template, rendered as transformers renders it but without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from laban.actors.errors import InvalidInput, UnsupportedModel

Turn = tuple[str, str]  # role, text


class Refused(Exception):
    """The template does not accept this conversation; the text says why."""


class ChatTemplate:
    """A jinja template and the special tokens that it may name. `source` names the file, for messages.

    Chat templates come with models, from anywhere: they run in jinja's immutable sandbox.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str], source: str = "chat template") -> None:
        self.text = text
        self.source = source
        self.special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise UnsupportedModel(f"{source} is not a valid template: {error}", field="model") from None

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """Raises UnsupportedModel if the folder has no chat template, or one that is broken."""
        path = Path(folder).expanduser()
        config = _read_object(path / "tokenizer_config.json")
        special_tokens = _special_tokens(_read_object(path / "special_tokens_map.json")) | _special_tokens(config)
        if (path / "chat_template.jinja").is_file():
            text = (path / "chat_template.jinja").read_text(encoding="utf-8")
            return cls(text, special_tokens, str(path / "chat_template.jinja"))
        for name, holder in (("tokenizer_config.json", config), ("chat_template.json", None)):
            found = (_read_object(path / name) if holder is None else holder).get("chat_template")
            if isinstance(found, list):  # several, by name
                named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
                found = named.get("default")
            if isinstance(found, str):
                return cls(found, special_tokens, str(path / name))
        raise UnsupportedModel(
            f"{path} has no chat template, so its messages cannot be framed; "
            "add a chat_template.jinja (base models have none: use the instruct one)",
            field="model",
        )

    def render(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        """The prompt of a conversation. Raises Refused if the template does not accept it."""
        messages = [{"role": role, "content": text} for role, text in turns]
        return self.render_messages(messages, add_generation_prompt=add_generation_prompt)

    def render_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """`render` for messages as templates know them, calls of tools among them. `tools` are OpenAI's definitions."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        # A template is a program: it may also fail on a type or a missing key.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise Refused(str(error)) from None
        except RecursionError:
            raise Refused("it is nested too deeply") from None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant says: rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInput(f"{path} is not valid JSON ({error})", field="model") from None
    return value if isinstance(value, dict) else {}
