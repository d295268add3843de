"""Messages that an administrator lets tenants share: what of their views is computed in a common namespace.

A grant names messages that open a conversation. Framed as the model frames them they make a chain of encodings, each
under what stands before it, in a namespace that is no tenant's. A granted tenant's view that begins with these very
tokens names these encodings in place of its own (`kvstore.spaces`); whatever follows is its own. So nothing is ever
computed there but what the administrator wrote, and no request can name it otherwise than by saying the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from laban.actors.errors import InvalidInput, LabanError, OutOfRange
from laban.cluster.config_grants import GrantSection
from laban.cluster.messages import Voice
from laban.cluster.pools import Pools
from laban.kvstore.encodings import (
    EMPTY_VIEW,
    EncodingId,
    EncodingSpec,
    View,
    common_namespace,
    make_spec,
    with_adapter,
)
from laban.kvstore.spaces import Granted

MAX_POOL_SHARE = 0.5  # of a worker's device, for all that is granted of its model

NO_GRANTS: Mapping[str, GrantSection] = MappingProxyType({})
NOTHING_GRANTED: Mapping[str, Granted] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Chain:
    """A grant's encodings by one model with one adapter, each after those it depends on."""

    grant: str
    model: str
    fingerprint: str  # the adapter's, "" for none
    specs: tuple[EncodingSpec, ...]

    @property
    def num_tokens(self) -> int:
        return sum(spec.num_tokens for spec in self.specs)


class Grants:
    """All of them, of all models that are served. Never changes."""

    def __init__(self, sections: Mapping[str, GrantSection], voices: Mapping[str, Voice], pools: Pools) -> None:
        """The sections' texts have been read (`config_grants.with_texts`). Raises InvalidInput for a model or an
        adapter that is not served, and for more than half of what a worker's device holds, OutOfRange for messages
        longer than the context; all name the field."""
        self._sections = dict(sections)
        self.chains = tuple(self._chains(voices, pools))
        self.ids: frozenset[EncodingId] = frozenset(spec.encoding_id for chain in self.chains for spec in chain.specs)
        self._of: dict[tuple[str, str], Mapping[str, Granted]] = {}
        for pool in pools:
            specs = {spec.encoding_id: spec for chain in self.chains_of(pool.name) for spec in chain.specs}
            page_size, most = pool.info.page_size, pool.info.pool_tokens * MAX_POOL_SHARE
            num_tokens = sum(-(-spec.num_tokens // page_size) * page_size for spec in specs.values())
            if num_tokens > most:
                raise InvalidInput(
                    f"the messages granted of {pool.name} take {num_tokens} tokens, in whole pages of {page_size},"
                    f" expected at most {int(most)}, half of what a worker's device holds",
                    field="grants",
                )

    def __bool__(self) -> bool:
        return bool(self.chains)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sections)

    def chains_of(self, model: str) -> Iterator[Chain]:
        return (chain for chain in self.chains if chain.model == model)

    def of(self, tenant: str, model: str) -> Mapping[str, Granted]:
        """What the tenant shares of a model, by the adapter's fingerprint."""
        if not self.chains:
            return NOTHING_GRANTED
        mine = [name for name, section in self._sections.items() if section.includes(tenant)]
        key = "|".join(mine), model
        found = self._of.get(key)
        if found is None:
            chains = [chain for chain in self.chains_of(model) if chain.grant in mine]
            found = {
                fingerprint: _granted(chain.specs for chain in chains if chain.fingerprint == fingerprint)
                for fingerprint in {chain.fingerprint for chain in chains}
            }
            self._of[key] = found
        return found

    def _chains(self, voices: Mapping[str, Voice], pools: Pools) -> Iterator[Chain]:
        for name, section in self._sections.items():
            try:
                info = pools.named(section.model or "").info
            except InvalidInput as error:
                raise InvalidInput(error.message, field=f"grants.{name}.model", value=error.value) from None
            voice = voices[info.model_name]
            fingerprints = [""]
            for number, adapter in enumerate(section.adapters):
                if adapter not in voice.adapters:
                    known = f"expected one of {', '.join(voice.adapters)}" if voice.adapters else "there are none"
                    field = f"grants.{name}.adapters.{number}"
                    raise InvalidInput(f"{info.model_name} has no such adapter; {known}", field=field, value=adapter)
                fingerprints.append(voice.adapters[adapter])
            for fingerprint in dict.fromkeys(fingerprints):
                namespace = with_adapter(common_namespace(info.namespace), fingerprint)
                specs = _specs(name, section, voice, namespace, info.max_context)
                yield Chain(name, info.model_name, fingerprint, specs)


def _specs(
    grant: str, section: GrantSection, voice: Voice, namespace: str, max_context: int
) -> tuple[EncodingSpec, ...]:
    framing = voice.framing
    specs: dict[EncodingId, EncodingSpec] = {}

    def add(tokens: tuple[int, ...], start: int, view: View) -> EncodingSpec:
        spec = make_spec(namespace, tokens, start, view, specs)
        return specs.setdefault(spec.encoding_id, spec)

    view, at = EMPTY_VIEW, 0
    for number, message in enumerate(section.messages):
        field = f"grants.{grant}.messages.{number}"
        assert message.text is not None
        try:
            if number == 0 and (root := framing.root(message.role)):
                view, at = View(add(root, 0, EMPTY_VIEW).encoding_id), len(root)
            tokens = framing.message(message.role, message.text, message.name, first=number == 0)
            elsewhere = framing.message(message.role, message.text, message.name)
        except LabanError as error:
            raise InvalidInput(error.message, field=field) from None
        if at + len(tokens) > max_context:
            why = f"ends at token {at + len(tokens)}, expected at most the model's context of {max_context}"
            raise OutOfRange(why, field=field)
        if number == 0 and elsewhere != tokens:  # where a message that is read elsewhere was made, after the root alone
            add(elsewhere, at, view)
        spec = add(tokens, at, view)
        view, at = View(spec.encoding_id), spec.stop
    return tuple(specs.values())


def _granted(chains: Iterable[Iterable[EncodingSpec]]) -> Granted:
    found: dict[tuple[int, View], dict[EncodingId, EncodingSpec]] = {}
    for specs in chains:
        for spec in specs:
            found.setdefault((spec.start, spec.view), {})[spec.encoding_id] = spec
    return {place: tuple(specs.values()) for place, specs in found.items()}
