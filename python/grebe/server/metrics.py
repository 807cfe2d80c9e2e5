"""Numbers of a running server: Prometheus text for /metrics, JSON for the status page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .notes import Note

__all__ = ["Counters", "plain", "prometheus"]

Labels = Mapping[str, object]

# Numbers of JobRunner.stats(): key there, name here, kind, meaning.
_NUMBERS = (
    ("n_running", "requests_running", "gauge", "Requests that the engine works on"),
    ("n_waiting", "requests_waiting", "gauge", "Requests in the queue"),
    ("n_ctx", "context_tokens", "gauge", "Tokens that a conversation may have"),
    ("jobs", "jobs_total", "counter", "Generations that were begun"),
    (
        "jobs_refused",
        "jobs_refused_total",
        "counter",
        "Generations refused since the queue was full",
    ),
    ("jobs_failed", "jobs_failed_total", "counter", "Generations under which the engine failed"),
    ("prompt_tokens", "prompt_tokens_total", "counter", "Tokens of prompts"),
    (
        "cached_tokens",
        "cached_tokens_total",
        "counter",
        "Tokens of prompts that were known already",
    ),
    (
        "prefilled_tokens",
        "prefilled_tokens_total",
        "counter",
        "Tokens of prompts that were computed",
    ),
    ("completion_tokens", "completion_tokens_total", "counter", "Sampled tokens"),
    (
        "messages_replayed",
        "messages_replayed_total",
        "counter",
        "Assistant messages put back into a prompt as they were sampled",
    ),
    ("steps", "steps_total", "counter", "Passes over the weights"),
    ("prefill_s", "prefill_seconds_total", "counter", "Time of passes that read a prompt"),
    ("decode_s", "decode_seconds_total", "counter", "Time of passes that only sampled"),
    ("sessions_evicted", "sessions_evicted_total", "counter", "Idle sessions let go for memory"),
    (
        "sessions_forked",
        "sessions_forked_total",
        "counter",
        "Sessions that began as another's twin",
    ),
)
# Maps in stats(): the label's name, meaning.
_MAPS = (
    ("accepted", "requests_accepted_total", "api", "Requests that became a generation"),
    ("finished", "finished_total", "reason", "Generations by the reason of their end"),
    ("misses", "prefix_misses_total", "reason", "Why the known part of a prompt was not longer"),
)
# Of the KV store.
_CACHE = (
    ("disk_bytes", "cache_disk_bytes", "gauge", "Files of the KV store"),
    ("ram_bytes", "cache_ram_bytes", "gauge", "What the KV store keeps in memory"),
    ("lookups", "cache_lookups_total", "counter", "Prompts that asked the KV store"),
    ("hits", "cache_hits_total", "counter", "Prompts that it knew a prefix of"),
    ("tokens_wanted", "cache_tokens_wanted_total", "counter", "Tokens asked for"),
    ("tokens_found", "cache_tokens_found_total", "counter", "Tokens that were there"),
    ("bytes_written", "cache_written_bytes_total", "counter", "Bytes given to the disk"),
    ("bytes_read", "cache_read_bytes_total", "counter", "Bytes read from the disk"),
    ("records_evicted", "cache_evicted_total", "counter", "Records dropped for the budget"),
    ("write_failures", "cache_write_failures_total", "counter", "Writes that failed"),
)


class Counters:
    """What the HTTP side counts. Of the event loop."""

    def __init__(self) -> None:
        self.n_open = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._computed: Counter[str] = Counter()

    def count(self, route: str, status: int, seconds: float) -> None:
        """One request is over. ``route`` must come from a small set."""
        self._requests[route, status] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]

    def turn(self, note: Note) -> None:
        """What a request's turn, if it had one, made the engine read."""
        if note.prompt_tokens is not None and note.cached_tokens is not None:
            self._computed[note.miss] += note.prompt_tokens - note.cached_tokens

    def lines(self) -> Iterable[str]:
        """As Prometheus reads them."""
        yield from _metric(
            "http_requests_open", "gauge", "Requests being answered", [({}, self.n_open)]
        )
        requests = [({"route": r, "status": s}, n) for (r, s), n in sorted(self._requests.items())]
        yield from _metric("http_requests_total", "counter", "Answered requests", requests)
        seconds = [({"route": r}, n) for r, n in sorted(self._seconds.items())]
        yield from _metric("http_request_seconds_total", "counter", "Time to their ends", seconds)
        computed = [({"miss": miss}, n) for miss, n in sorted(self._computed.items())]
        text = "Tokens of prompts that were not known, by why"
        yield from _metric("uncached_tokens_total", "counter", text, computed)


def prometheus(
    counters: Counters, stats: Mapping[str, Any], facts: Mapping[str, Any], up: bool
) -> str:
    """The text of /metrics."""
    lines = list(_metric("ready", "gauge", "1: the model is loaded", [({}, int(up))]))
    if facts:
        info = {key: facts[key] for key in ("id", "backend", "version") if key in facts}
        lines += _metric("model_info", "gauge", "What is served", [(info, 1)])
    lines += counters.lines()
    lines += _numbers(stats, _NUMBERS)
    for key, name, label, text in _MAPS:
        values = [({label: value}, n) for value, n in sorted(stats.get(key, {}).items())]
        lines += _metric(name, "counter", text, values)
    replay = stats.get("replay") or {}
    outcomes = [({"outcome": value}, n) for value, n in sorted(replay.get("outcomes", {}).items())]
    lines += _metric("replay_total", "counter", "Assistant messages that came back", outcomes)
    sessions = stats.get("sessions", ())
    for name, text, field in (
        ("sessions", "Conversations held in memory", None),
        ("session_tokens", "Their tokens", "tokens"),
        ("session_bytes", "Their bytes, common history counted for each", "bytes"),
    ):
        value = len(sessions) if field is None else sum(s.get(field, 0) for s in sessions)
        lines += _metric(name, "gauge", text, [({}, value)])
    lines += _numbers(stats.get("cache") or {}, _CACHE)
    return "\n".join(lines) + "\n"


def plain(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics as JSON can carry them."""
    return {key: _jsonable(value) for key, value in stats.items() if key != "state"}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, (int, float, str)) or value is None else str(value)


def _numbers(
    values: Mapping[str, Any], table: Iterable[tuple[str, str, str, str]]
) -> Iterable[str]:
    for key, name, kind, text in table:
        if key in values:
            yield from _metric(name, kind, text, [({}, values[key])])


def _metric(
    name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]
) -> Iterable[str]:
    yield f"# HELP grebe_{name} {text}"
    yield f"# TYPE grebe_{name} {kind}"
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(str(label))}"' for key, label in labels.items())
        yield f"grebe_{name}{{{inner}}} {value}" if inner else f"grebe_{name} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
