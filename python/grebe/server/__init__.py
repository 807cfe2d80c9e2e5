"""The HTTP server: OpenAI Chat and Responses, Anthropic Messages, raw completions.

Protocol facts of the APIs live here, those of the model in :mod:`grebe.chat`. See docs/server.md.
"""
