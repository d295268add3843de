"""What each part of the language is, in a line: of the tables of docs/workflow-language.md and of the JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping

from laban.cluster.workflow import schema
from laban.cluster.workflow.schema import Model

COUNT = "`count: n` is short for `for_each: n`"

ABOUT: Mapping[type[Model], str] = {
    schema.Workflow: "A workflow: which messages exist, which steps make more, and what each step reads.",
    schema.Input: "A value given when the workflow is run.",
    schema.Message: "A fixed message. A bare text is its `text`.",
    schema.Agent: "A role. A bare text is its `prompt`.",
    schema.Sampling: "How text is generated. A step's value wins over its agent's, that over the workflow's.",
    schema.Step: "A step: generates a message, waits for one from outside, or runs another workflow.",
    schema.ForEach: "The members of a fan-out.",
    schema.Read: "An entry of a view. A bare text is its `read`.",
    schema.Join: "How much of what a step waits for must be there. `all` and `any` are short forms.",
    schema.Value: "A value found in a step's text. A bare text is its `regex`.",
    schema.External: "What an external step asks, and of whom.",
    schema.Retries: "How often a failed attempt is tried again. A number is its `max`.",
    schema.Vote: "What a step's ballots are over. A bare text is its `over`.",
    schema.BoundMessage: "What stands in the place of a message of the workflow that a step runs.",
    schema.LoopBlock: "Steps that are repeated together.",
    schema.Loop: "How often, and until when.",
    schema.WhenBlock: "Steps that run if a condition holds, and others if it does not.",
    schema.Output: "A named result. A bare text is its `read`.",
}

TEXTS: Mapping[type[Model], Mapping[str, str]] = {
    schema.Workflow: {
        "version": "of the language that the file is written in",
        "name": "the workflow's name",
        "description": "what it is for",
        "inputs": "name -> a value given when it is run",
        "fidelity": "for every read that does not say otherwise",
        "tolerance": "of `auto`, `corrected` reads, audits in service: mean KL from `exact`, nats a token; 0.05",
        "recompute_share": "of the tokens of `blended` reads, those that are encoded again",
        "model": "the name of the model that steps call; the server's default if nobody says",
        "adapter": "the name of the adapter that steps call it with; none if nobody says",
        "sampling": "defaults for every step",
        "messages": "name -> a fixed message",
        "agents": "name -> a role",
        "steps": "steps, loops and blocks; their order does not matter",
        "workflows": "name -> a whole workflow that steps may run",
        "outputs": "name -> a result; without any the last step is one, under its own name",
    },
    schema.Input: {
        "type": "what it must be; a `list` is of texts, numbers and booleans",
        "default": "its value if none is given; without a default one must be",
        "description": "what it is for",
    },
    schema.Message: {
        "text": "a template",
        "for_each": "a list input: one message for each of its items",
        "role": "who says it",
        "name": "its name line",
        "private": "readers that must not see it may not see it indirectly either",
    },
    schema.Agent: {
        "prompt": "a template: the first thing its steps read",
        "role": "of the prompt",
        "private": "as of a message",
        "model": "that its steps call; the workflow's if left out",
        "adapter": "of that model; the workflow's if left out, and `none` is none",
        "sampling": "defaults for its steps",
    },
    schema.Sampling: {
        "max_tokens": "the most tokens to generate; 256 if nobody says",
        "temperature": "0, the default, is greedy",
        "top_p": "sample from the likeliest tokens of this share; 1 if nobody says",
        "top_k": "sample from so many of the likeliest tokens; 0, the default, is all of them",
        "seed": "of the noise; each instance draws its own from it",
        "stop": "texts that end generation",
        "logprobs": "how many of the likeliest tokens to report",
        "drafting": "guess the next tokens from what is read where that is faster, the default; the text is the same",
        "forced_text": "generated whatever the model says, to measure with",
    },
    schema.Step: {
        "step": "its name",
        "when": "each instance runs only if this holds",
        "agent": "whom it runs as: the agent's prompt is the first thing read, its sampling the default",
        "for_each": "fan-out: `agents`, some agents, a number, a list input, or batches",
        "max_parallel": "how many of its instances run at a time; the others wait",
        "rounds": "how often it is repeated: each round starts when what it reads is there",
        "timeout_s": "how long an attempt may take",
        "retries": "how often a failed attempt is tried again",
        "on_error": "what the last failure does: ends the run; is passed over by readers; is the step's text",
        "read": "what it reads, in order",
        "join": "how much of what it waits for must be there",
        "external": "its text comes from outside; `{}` waits for anybody",
        "workflow": "the workflow that it runs: a name among `workflows`, or a file's path",
        "inputs": "that workflow's inputs: a text is an expression, all else stands for itself",
        "messages": "that workflow's messages -> what this step would read in their place",
        "output": "the one of that workflow's outputs that is this step's text; left out if it has one only",
        "values": "name -> how a value is found in its text",
        "vote": "its texts are ballots",
        "role": "of the message that it makes: `assistant`, or `user` if it is external",
        "name": "a template: the message's name line",
        "prefill": "a template: the start of the generated message; no space at its end",
        "response_schema": "what it generates is JSON that follows this; its properties are values of the step",
        "choices": "what it generates is one of these texts, or of those that an expression gives",
        "fidelity": "of its reads",
        "tolerance": "of `auto`, and of its `corrected` reads; default: the workflow's",
        "recompute_share": "of its `blended` reads; default: the workflow's",
        "model": "that it calls; its agent's if left out",
        "adapter": "of that model; its agent's if left out, and `none` is none",
        "sampling": "of this step",
        "private": "what it makes must not leak",
    },
    schema.ForEach: {
        "agents": "these agents; `{}` is all of them",
        "count": "the numbers 1 to n",
        "input": "a list input: a member an item, by its number from 1",
        "batch": "a step or message: a member for every `size` of its members, in order",
        "size": "of a batch; the last one may be smaller",
    },
    schema.Read: {
        "read": "which messages",
        "fidelity": "how their encodings may be reused",
        "tolerance": "of `auto`, and of these reads if they are `corrected`; default: the step's",
        "recompute_share": "if they are `blended`: how many of their tokens count; default: the step's",
        "order": "gives members by name or number: only these are read, in this order",
        "begin": "the first token read of each message, its frame's tokens counted",
        "end": "the token before which reading ends; `laban lint` finds ranges beyond a message",
    },
    schema.Join: {
        "at_least": "so many; all of them if left out",
        "rest": "what becomes of the others: they go on, or are stopped if nothing else waits for them",
    },
    schema.Value: {
        "regex": "RE2: the group called as the value is, else the first group, else the whole match",
        "pointer": "a place in the JSON in the text, RFC 6901",
        "expression": "over `text` and the values before this one",
        "type": "what is found is turned into this; what cannot be is not found",
        "one_of": "one of these words, in any case",
        "all": "every match, as a list",
        "required": "a text without it is a failed attempt",
        "default": "if nothing is found; none if left out",
    },
    schema.External: {
        "description": "for whoever answers",
        "tool": "which handler; the step's name if left out",
        "args": "name -> an argument: a text is an expression, all else stands for itself",
        "input_schema": "what the arguments must be",
        "output_schema": "what the answer must be",
        "lease_s": "a handler silent for so long loses the step to another one",
    },
    schema.Retries: {
        "max": "so often at most",
        "delay_s": "the wait before the first retry; each further one is twice as long",
    },
    schema.Vote: {
        "over": "the step whose members are voted for",
        "ballot": "which member counts that a text names: the first one or the last",
        "quorum": "how many voters must end well; all if left out",
        "value": "the voters' value that is the ballot; the text if left out",
    },
    schema.BoundMessage: {"read": "which messages"},
    schema.LoopBlock: {
        "loop": "how often, and until when",
        "when": "the loop runs only if this holds",
        "steps": "what is repeated; no loop",
    },
    schema.Loop: {
        "name": "for messages about it; `loop1`, `loop2`, ... if left out",
        "until": "looked at after each round; all rounds are run if left out",
        "max": "the most rounds",
        "on_max": "if `until` does not hold after them: fail, or go on with what is there; goes with `until`",
    },
    schema.WhenBlock: {
        "when": "looked at once; in a loop once a round",
        "steps": "run if it holds",
        "otherwise": "run if it does not",
    },
    schema.Output: {
        "read": "the messages, as their readers see them: with their `prefill`",
        "join": "how many must be there",
        "separator": "between them",
    },
}


def models() -> tuple[type[Model], ...]:
    """Every mapping of the language, in the order of the tables."""
    return tuple(ABOUT)
