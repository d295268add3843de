"""Orders for a dispatcher, and what hears how they end."""

from __future__ import annotations

from scripted_engine import encode

from laban.actors.calls import Call, Sampling
from laban.cluster.slots import Order
from laban.kvstore.encodings import EMPTY_VIEW, View, make_spec


class Sink:
    def __init__(self) -> None:
        self.workers: dict[str, str] = {}
        self.ended: dict[str, object] = {}

    def call_requeued(self, key, attempt):
        pass

    def call_started(self, key, attempt, worker_id, event):
        self.workers[key] = worker_id

    def call_tokens(self, key, attempt, event):
        pass

    def call_finished(self, key, attempt, worker_id, event, waited_ms):
        self.ended[key] = event

    def call_failed(self, key, attempt, error):
        self.ended[key] = error


def order(sink: Sink, key: str, shared: str = "", length: int = 3) -> Order:
    """A call that reads `shared` and generates `length` tokens."""
    specs = {}
    view = EMPTY_VIEW
    if shared:
        spec = make_spec("model/", encode(shared), 0, EMPTY_VIEW, specs)
        specs[spec.encoding_id] = spec
        view = View(spec.encoding_id)
    sampling = Sampling(max_tokens=length, forced=(7,) * length)
    return Order(Call(key, "model/", view, len(shared), (1,), tuple(specs.values()), sampling), sink, specs)
