"""DeepSeek V4's chat protocol: conversations to prompts, output to reasoning, text and tool calls.

Text and tokens only: nothing here knows HTTP or the engine. See docs/chat.md.
"""
