"""Shortens recorded requests of coding agents: ``make.py RECORDINGS OUT``.

Long texts become their beginning and a hash, so that equal texts stay equal and different ones
different; calls, ids, options and the order of keys stay as they are.
"""

import hashlib
import json
import sys
from pathlib import Path

CLIENTS = ("claude", "codex", "opencode", "pi", "qwen")
APIS = ("/v1/messages", "/v1/responses")
HEADERS = (
    "x-claude-code-session-id",
    "x-claude-code-agent-id",
    "session_id",
    "session-id",
    "x-session-affinity",
)


def shortened(value, key=""):
    if isinstance(value, str):
        if len(value) <= 120 or key in ("arguments", "user_id"):
            return value
        return f"{value[:48]}~{hashlib.sha1(value.encode()).hexdigest()[:10]}"
    if isinstance(value, list):
        return [shortened(item) for item in value]
    if isinstance(value, dict):
        return {name: shortened(item, name) for name, item in value.items()}
    return value


def main(recordings: Path, out: Path) -> None:
    sys.path.insert(0, str(recordings))
    from load import load, scenarios

    for client in CLIENTS:
        texts: dict[str, int] = {}
        kept = {}
        for scenario in scenarios(client):
            requests = []
            for request in load(client, scenario):
                path = request["path"].split("?")[0]
                if request["method"] != "POST" or not path.startswith(APIS):
                    continue
                headers = {k: v for k, v in map(tuple, request["headers"]) if k in HEADERS}
                body = shortened(request["body"])
                # Tools and messages repeat from request to request: one copy of each.
                for name in ("tools", "messages", "input", "system"):
                    if isinstance(body.get(name), list):
                        body[name] = [
                            texts.setdefault(json.dumps(item), len(texts)) for item in body[name]
                        ]
                requests.append({"n": request["n"], "path": path, "headers": headers, "body": body})
            if requests:
                kept[scenario] = requests
        data = {"parts": [json.loads(text) for text in texts], "scenarios": kept}
        (out / f"{client}.json").write_text(
            json.dumps(data, ensure_ascii=False, indent=None) + "\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
