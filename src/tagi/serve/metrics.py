"""What Prometheus asks for: requests, how long they took, what waits, where adapters came from."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tagi.serve.store import AdapterStore
from tagi.serve.worker import Worker

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


class Metrics:
    """The numbers of one application."""

    def __init__(self, worker: Worker, store: AdapterStore) -> None:
        self._registry = CollectorRegistry()
        named = ("method", "route", "status")
        self._requests = Counter("tagi_requests", "Requests answered", named, registry=self._registry)
        self._seconds = Histogram(
            "tagi_request_seconds", "Time of a request", ("route",), buckets=SECONDS, registry=self._registry
        )
        self.answer_tokens = Counter("tagi_answer_tokens", "Tokens of answers", registry=self._registry)
        waiting = Gauge("tagi_waiting", "Inputs that are not answered yet", registry=self._registry)
        waiting.set_function(lambda: worker.waiting)
        adapters = Gauge("tagi_adapters", "Adapters, by what became of them", ("source",), registry=self._registry)
        for source in asdict(store.use):
            adapters.labels(source).set_function(lambda source=source: getattr(store.use, source))

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request that is over."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)


class Together(Collector):
    """The numbers of several applications, each with the name of its own as the label `replica`."""

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """As Prometheus' client asks for them."""
        found: dict[str, Metric] = {}
        for replica, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text.decode()):
                kept = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    kept.add_sample(sample.name, sample.labels | {"replica": replica}, sample.value)
        return found.values()
