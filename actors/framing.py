"""Framing a model's messages: its chat template's frames, found by rendering probe conversations with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from laban.actors.chat_template import ChatTemplate, Refused, Turn
from laban.actors.errors import UnsupportedModel
from laban.actors.frames import ROLES, Frame, Framing
from laban.actors.model_folder import eos_ids_of
from laban.actors.tokenizer import Tokenizer

__all__ = ["ROLES", "Frame", "Framing", "derive_framing", "probe"]

# Probe texts: words that no template contains or looks for.
SYSTEM, USER, ASSISTANT, USER_2, SYSTEM_2 = "zqSysOne", "zqUserOne", "zqAsstOne", "zqUserTwo", "zqSysTwo"
S, U, A = ("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT)
U2, S2 = ("user", USER_2), ("system", SYSTEM_2)
PAD = " \n "

# The frames are checked against the template on these texts: merges at the seams depend on the text.
SAMPLE_TEXTS = ("What is 12 x 34?", "  padded \n", "\n\nline\n", "été 日本 🙂", ".", "1")


def derive_framing(folder: str | Path, tokenizer: Tokenizer | None = None) -> Framing:
    """The framing of the model folder `folder`. Raises UnsupportedModel, with the reason, if none can be found."""
    template = ChatTemplate.from_folder(folder)
    return probe(template, tokenizer or Tokenizer.from_folder(folder), eos_ids_of(folder))


def probe(template: ChatTemplate, tokenizer: Tokenizer, eos_ids: Sequence[int] = ()) -> Framing:
    """The framing that `template` implies. `eos_ids` are the ids that end a generation, besides the frame's own."""
    found = _Found()
    _probe_turns(template, found)
    _probe_system(template, found)
    _probe_stripping(template, found)
    frames = found.frames
    closing = tokenizer.encode(frames["assistant"].after)[:1]
    stops = [*(token_id for token_id in closing if tokenizer.is_special(token_id)), *eos_ids]
    framing = Framing(
        tokenizer=tokenizer,
        frames=frames,
        first_frames=found.first_frames,
        roots={"assistant": found.roots["user"], **found.roots},
        stop_token_ids=tuple(dict.fromkeys(stops)),
    )
    _note_contexts(template, found)
    _note_mismatches(template, framing, found)
    return replace(framing, notes=tuple(dict.fromkeys(found.notes)))


class _Found:
    """What the probes have found so far."""

    def __init__(self) -> None:
        self.frames: dict[str, Frame] = {}
        self.first_frames: dict[str, Frame] = {}
        self.roots: dict[str, str] = {}
        self.notes: list[str] = []
        self.system_as_user = False


@dataclass(frozen=True)
class _Split:
    """A rendered probe: the texts before, between and after its contents. `error` if it was refused."""

    parts: tuple[str, ...] = ()
    error: str = ""

    def __bool__(self) -> bool:
        return bool(self.parts)


def _split(template: ChatTemplate, turns: Sequence[Turn], *, generation: bool = False) -> _Split:
    try:
        rest = template.render(turns, add_generation_prompt=generation)
    except Refused as refused:
        return _Split(error=str(refused))
    parts = []
    for _, content in turns:
        before, found, rest = rest.partition(content)
        if not found or content in rest:
            return _Split(error=f"it does not show {content!r} once and in its place")
        parts.append(before)
    return _Split((*parts, rest))


def _probe_turns(template: ChatTemplate, found: _Found) -> None:
    """The frames of user and assistant, and the root before a user."""
    alone, prompted = _split(template, [U]), _split(template, [U], generation=True)
    answered, turns = _split(template, [U, A]), _split(template, [U, A, U2])
    for probe, shape in ((alone, "a user message"), (prompted, "a generation prompt"), (turns, "two user turns")):
        if not probe:
            raise UnsupportedModel(f"{template.source} cannot be framed: {shape}: {probe.error}", field="model")
    lead, user_after = alone.parts
    user_after, opening = _cut_common(prompted.parts[1], user_after)
    _, to_assistant, to_user, _ = turns.parts
    user_after, assistant_before = _cut_common(to_assistant, user_after)
    assistant_after, user_before = _cut_common(to_user, answered.parts[2] if answered else "")
    if not lead.endswith(user_before):
        # The last answer's end told nothing: take the longest start of a turn that also starts the conversation.
        user_before = _common_suffix(to_user, lead)
        assistant_after = to_user[: len(to_user) - len(user_before)]
    if not opening.startswith(assistant_before) and not assistant_before.startswith(opening):
        found.notes.append(
            f"a generated message opens with {opening!r}, a past one with {assistant_before!r}; Laban keeps the first"
        )
    if answered and answered.parts[1] != to_assistant:
        found.notes.append("the template frames the last answer otherwise than past ones; Laban frames it as past ones")
    found.roots["user"] = lead[: len(lead) - len(user_before)]
    found.frames["user"] = Frame(user_before, user_after, opening=user_before)
    found.frames["assistant"] = Frame(assistant_before, assistant_after, opening=opening)


def _probe_system(template: ChatTemplate, found: _Found) -> None:
    """The frame of the system role and the root before it; the user's, if the template has no such turn."""
    user = found.frames["user"]
    first = _split(template, [S, U])
    if not first or not first.parts[1].endswith(user.before):
        found.notes.append(
            "the template has no system turn of its own "
            f"({first.error or 'it puts the text into a user turn'}); Laban frames a system message as a user's"
        )
        found.frames["system"], found.roots["system"] = user, found.roots["user"]
        found.system_as_user = True
        return
    lead = first.parts[0]
    after = _without_suffix(first.parts[1], user.before)
    later = _split(template, [U, A, S2, U2])
    assistant_after = found.frames["assistant"].after
    if later and later.parts[2].startswith(assistant_after) and later.parts[3].endswith(user.before):
        before = later.parts[2][len(assistant_after) :]
        later_after = _without_suffix(later.parts[3], user.before)
    else:
        # Not accepted elsewhere: the user's frame with the other role's name, if that is what starts the first.
        before, later_after = user.before.replace("user", "system"), after
        if before == user.before or before not in lead:
            before = _without_prefix(lead, _bos(template, lead))
    found.frames["system"] = Frame(before, later_after, opening=before)
    if lead.endswith(before) and later_after == after:
        found.roots["system"] = _without_suffix(lead, before)
        return
    root = _bos(template, lead)
    found.roots["system"] = root
    found.first_frames["system"] = Frame(lead[len(root) :], after, opening=lead[len(root) :])
    added = lead[len(root) :].removeprefix(before)
    found.notes.append(f"the template adds {added!r} to a system message that opens the conversation, and only there")


def _probe_stripping(template: ChatTemplate, found: _Found) -> None:
    """Which roles' texts the template strips of surrounding white space."""
    turns = [] if found.system_as_user else [("system", PAD + SYSTEM + PAD)]
    turns += [(role, PAD + text + PAD) for role, text in (U, A, U2)]
    try:
        rendered = template.render(turns)
    except Refused:
        return
    for role, content in (("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT)):
        if content not in rendered:
            continue
        left, _, right = rendered.partition(content)
        strip_left, strip_right = not left.endswith(PAD), not right.startswith(PAD)
        for frames in (found.frames, found.first_frames):
            if role in frames:
                frames[role] = replace(frames[role], strip_left=strip_left, strip_right=strip_right)
    if found.system_as_user:
        found.frames["system"] = found.frames["user"]


def _note_contexts(template: ChatTemplate, found: _Found) -> None:
    """Say where the template depends on more than the message itself."""
    if not _split(template, [U, U2]):
        found.notes.append("the template demands that user and assistant take turns; Laban frames them in any order")
    thought = ("assistant", f"<think>\n{SYSTEM_2}\n</think>\n\n{ASSISTANT}")
    try:
        if SYSTEM_2 not in template.render([U, thought, U2]):
            found.notes.append("the template drops the thinking of past turns; Laban keeps what a message holds")
    except Refused as refused:
        found.notes.append(f"the template refuses an answer with thinking ({refused}); Laban frames it as any other")


def _note_mismatches(template: ChatTemplate, framing: Framing, found: _Found) -> None:
    """Compare whole prompts, token by token; what no other note explains gets one of its own."""
    system = [] if found.system_as_user else [("system", 0)]
    shapes = {
        "a user message": [("user", 0)],
        "several turns": [("user", 0), ("assistant", 1), ("user", 2), ("assistant", 3), ("user", 4)],
        "a system message": [*system, ("user", 1)],
        "a system message and several turns": [*system, ("user", 1), ("assistant", 2), ("user", 3)],
    }
    for shape, roles in shapes.items():
        for shift in range(len(SAMPLE_TEXTS)):
            turns = [(role, SAMPLE_TEXTS[(number + shift) % len(SAMPLE_TEXTS)]) for role, number in roles]
            if framed_prompt(framing, turns) != template_prompt(template, framing.tokenizer, turns):
                found.notes.append(f"on {shape} such as {turns[-1][1]!r} the framed tokens are not the template's")
                break


def framed_prompt(framing: Framing, turns: Sequence[Turn]) -> list[int]:
    """Root, messages, and the header of the answer."""
    ids = list(framing.root(turns[0][0]))
    for number, (role, text) in enumerate(turns):
        ids.extend(framing.message(role, text, first=number == 0))
    return [*ids, *framing.header("assistant")]


def template_prompt(template: ChatTemplate, tokenizer: Tokenizer, turns: Sequence[Turn]) -> list[int] | None:
    """The template's own prompt for an answer; None if it refuses the conversation."""
    try:
        return tokenizer.encode(template.render(turns, add_generation_prompt=True))
    except Refused:
        return None


def _cut_common(text: str, start: str) -> tuple[str, str]:
    """`text` cut after what it has in common with the beginning of `start`."""
    length = 0
    while length < min(len(text), len(start)) and text[length] == start[length]:
        length += 1
    return text[:length], text[length:]


def _common_suffix(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _without_suffix(text: str, suffix: str) -> str:
    return text[: len(text) - len(suffix)]


def _without_prefix(text: str, prefix: str) -> str:
    return text[len(prefix) :]


def _bos(template: ChatTemplate, lead: str) -> str:
    bos = template.special_tokens.get("bos_token", "")
    return bos if lead.startswith(bos) else ""
