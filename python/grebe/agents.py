"""How coding agents are told to use a server on this machine: environment, arguments, files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["CLIENTS", "AgentSettings", "settings"]

# Of a turn; they all ask for it beforehand, and the server clamps it to the context.
OUTPUT_TOKENS = 32_000
STREAM_IDLE_MS = 1_800_000


@dataclass(frozen=True)
class AgentSettings:
    """Of one client.

    Attributes:
        command: the program.
        env: variables.
        args: after the program, before the user's own.
        file: where settings can be kept instead, under the home directory; "" without one.
        content: of the file, complete and minimal.
        folder_env: variable that names another folder for the file, to leave the user's alone.
        install: how to get the program.
    """

    command: str
    install: str
    env: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    file: str = ""
    content: str = ""
    folder_env: str = ""

    def shell(self) -> list[str]:
        """Lines to paste into a shell."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]
        return [*lines, shlex.join([self.command, *self.args])]


def settings(client: str, url: str, model: str, n_ctx: int, key: str = "any") -> AgentSettings:
    """What ``client``, one of CLIENTS, needs.

    Args:
        client: its name.
        url: of the server, without /v1.
        model: its name there.
        n_ctx: tokens of context.
        key: an API key; any text where none is asked for.

    Example:
        >>> settings("claude", "http://127.0.0.1:8000", "m", 1000).env["ANTHROPIC_BASE_URL"]
        'http://127.0.0.1:8000'
    """
    return CLIENTS[client](url.rstrip("/"), model, n_ctx, key)


def _claude(url: str, model: str, n_ctx: int, key: str) -> AgentSettings:
    env = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": model,
        "CLAUDE_CODE_SUBAGENT_MODEL": model,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(n_ctx),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return AgentSettings("claude", "npm install -g @anthropic-ai/claude-code", env)


def _opencode(url: str, model: str, n_ctx: int, key: str) -> AgentSettings:
    name = f"grebe/{model}"
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "grebe",
        "options": {"baseURL": f"{url}/v1", "apiKey": key},
        "models": {
            model: {
                "name": model,
                "limit": {"context": n_ctx, "output": min(OUTPUT_TOKENS, n_ctx // 2)},
            }
        },
    }
    content = {"model": name, "small_model": name, "provider": {"grebe": provider}}
    return AgentSettings(
        "opencode",
        "npm install -g opencode-ai",
        env={"OPENCODE_CONFIG_CONTENT": json.dumps(content, separators=(",", ":"))},
        file=".config/opencode/opencode.json",
        content=_json(content),
    )


def _pi(url: str, model: str, n_ctx: int, key: str) -> AgentSettings:
    provider = {
        "baseUrl": f"{url}/v1",
        "api": "openai-completions",
        "apiKey": key,
        "compat": {
            "supportsStore": False,
            "supportsDeveloperRole": False,
            "supportsReasoningEffort": True,
            "supportsUsageInStreaming": True,
            "maxTokensField": "max_tokens",
            "supportsStrictMode": False,
            "thinkingFormat": "deepseek",
            "requiresReasoningContentOnAssistantMessages": True,
        },
        "models": [
            {
                "id": model,
                "name": model,
                "reasoning": True,
                "input": ["text"],
                "contextWindow": n_ctx,
                "maxTokens": min(OUTPUT_TOKENS, n_ctx // 2),
                "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
            }
        ],
    }
    return AgentSettings(
        "pi",
        "npm install -g @earendil-works/pi-coding-agent",
        env={"PI_OFFLINE": "1"},
        args=("--provider", "grebe", "--model", model),
        file=".pi/agent/models.json",
        content=_json({"providers": {"grebe": provider}}),
        folder_env="PI_CODING_AGENT_DIR",
    )


def _codex(url: str, model: str, n_ctx: int, key: str) -> AgentSettings:
    content = f"""\
model = {json.dumps(model)}
model_provider = "grebe"
model_context_window = {n_ctx}

[model_providers.grebe]
name = "grebe"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "GREBE_KEY"
stream_idle_timeout_ms = {STREAM_IDLE_MS}
"""
    provider = "model_providers.grebe"
    overrides = {
        "model": json.dumps(model),
        "model_provider": '"grebe"',
        "model_context_window": str(n_ctx),
        f"{provider}.name": '"grebe"',
        f"{provider}.base_url": json.dumps(f"{url}/v1"),
        f"{provider}.wire_api": '"responses"',
        f"{provider}.env_key": '"GREBE_KEY"',
        f"{provider}.stream_idle_timeout_ms": str(STREAM_IDLE_MS),
    }
    return AgentSettings(
        "codex",
        "npm install -g @openai/codex",
        env={"GREBE_KEY": key},
        args=tuple(arg for k, v in overrides.items() for arg in ("-c", f"{k}={v}")),
        file=".codex/config.toml",
        content=content,
    )


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


#: The clients that are known, by their commands.
CLIENTS: dict[str, Callable[[str, str, int, str], AgentSettings]] = {
    "claude": _claude,
    "opencode": _opencode,
    "pi": _pi,
    "codex": _codex,
}
