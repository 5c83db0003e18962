"""What Prometheus asks for: requests, how long they took, what waits, where adapters came from."""

from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
        self._answered = Counter("tagi_answer_tokens", "Tokens of answers", registry=self._registry)
        waiting = Gauge("tagi_waiting", "Inputs that are not answered yet", registry=self._registry)
        waiting.set_function(lambda: worker.waiting)
        adapters = Gauge("tagi_adapters", "Adapters, by what became of them", ("source",), registry=self._registry)
        for source in asdict(store.use):
            adapters.labels(source).set_function(lambda source=source: getattr(store.use, source))

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request that is over."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, tokens: int) -> None:
        """An answer that is complete."""
        self._answered.inc(tokens)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
