"""How the models that are served speak: what turns a tenant's texts into calls of each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from laban.cluster.config_grants import GrantSection
from laban.cluster.grants import NO_GRANTS, NOTHING_GRANTED, Grants
from laban.cluster.messages import Language, MessageBook, Voice
from laban.cluster.pools import Pools
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.models import unknown_adapters, unknown_models
from laban.cluster.workflow.schema import Workflow
from laban.kvstore.encodings import part_of

NO_VOICES: Mapping[str, Voice] = MappingProxyType({})


class Languages:
    """Encodings never cross tenants, but for those granted."""

    def __init__(
        self, pools: Pools, voices: Mapping[str, Voice], sections: Mapping[str, GrantSection] = NO_GRANTS
    ) -> None:
        """`voices` are by the models' names, `sections` have their files read; raises what Grants raises."""
        self._pools, self._voices = pools, dict(voices)
        self.grants = Grants(sections, self._voices, pools)

    @property
    def are_several(self) -> bool:
        return self._pools.are_several

    def of(self, tenant: str, model: str = "", *, part: str = "") -> Language:
        """A tenant's of a model, "" being the default. Encodings get neither into nor out of what is set apart as a
        `part`. Raises InvalidInput for a model that is not served.
        """
        info = self._pools.named(model).info
        voice = self._voices[info.model_name]
        namespace = f"{info.namespace}/{tenant}"
        if part:
            namespace = part_of(namespace, part)
        granted = NOTHING_GRANTED if part else self.grants.of(tenant, info.model_name)
        return Language(
            voice.framing, voice.tokenizer, namespace, info.max_context, info.model_name, voice.adapters, granted
        )

    def namespace(self, tenant: str) -> str:
        """Of a tenant's workflows in the journal: which models they may call, and whose they are."""
        return f"{self._pools.identity}/{tenant}"

    def new_book(self, tenant: str, part: str = "") -> MessageBook:
        """For a workflow, which may call any of the models. `part` as in `of`."""
        others = partial(self.of, tenant, part=part) if self.are_several else None
        return MessageBook(self.of(tenant, part=part), languages=others)

    def check(self, workflow: Workflow) -> None:
        """Raises WorkflowErrors for models that are not served, and adapters that are not, or are of another model."""
        problems = unknown_models(workflow, self._pools.all)
        problems = problems or unknown_adapters(workflow, lambda model: self.of("", model).adapters)
        if problems:
            raise WorkflowErrors(workflow.marks.locate(problems))
