"""What ``grebe chat`` does: a conversation in the terminal, without a server."""

from __future__ import annotations

import contextlib
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .config import Sampling
from .errors import ContextOverflowError
from .progress import ProgressBar

if TYPE_CHECKING:
    import argparse

    from .chat_session import ChatSession

__all__ = ["add_parser", "chat"]

HELP = """\
/new            forget the conversation
/undo           forget the last question and its answer
/retry          answer the last question again
/think LEVEL    off, low, high or max
/stats          tokens of the last answer
/quit           leave, as Ctrl-D
Ctrl-C stops an answer. A line that ends in \\ goes on in the next."""

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], add_model: Any
) -> None:
    """Adds ``chat``."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to the model in the terminal",
        description="A conversation in the terminal. /help lists what can be typed.",
    )
    parser.set_defaults(run=chat)
    parser.add_argument("--system", default="", metavar="TEXT", help="instructions for the model")
    parser.add_argument(
        "--think", choices=("off", "low", "high", "max"), default="high",
        help="how long it reasons before it answers (default: high)",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=8192, metavar="N",
        help="of an answer, reasoning included (default: 8192)",
    )  # fmt: skip
    parser.add_argument("--n-ctx", type=int, metavar="N", help="tokens of context")
    parser.add_argument("--cache-dir", metavar="DIR", help="keep what is computed here")
    parser.add_argument("--generation", choices=("0731", "may"), help="as for grebe serve")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="default: 1")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="X", help="default: 1")
    parser.add_argument("--seed", type=int, metavar="N", help="default: a new one each time")
    add_model(parser)


def chat(args: argparse.Namespace) -> None:
    """``grebe chat``."""
    from .chat_session import ChatSession
    from .commands import _load
    from .generations import generation_of

    sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    with ExitStack() as stack:
        model = stack.enter_context(_load(args))
        cache = None
        if args.cache_dir is not None:
            cache = stack.enter_context(model.open_cache(args.cache_dir))
        session = stack.enter_context(model.session(args.n_ctx, cache=cache))
        talk = ChatSession(
            model,
            session,
            system=args.system,
            generation=args.generation or generation_of(model.path),
        )
        _think(talk, args.think)
        _Terminal(talk, sampling, args.max_tokens).run()


class _Terminal:
    """Reads lines, prints answers. Piped input is a list of questions."""

    def __init__(self, talk: ChatSession, sampling: Sampling, max_tokens: int) -> None:
        self._talk, self._sampling, self._max_tokens = talk, sampling, max_tokens
        self._asks = sys.stdin is not None and sys.stdin.isatty()
        self._colours = sys.stdout.isatty()
        self._seconds = 0.0

    def run(self) -> None:
        if self._asks:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - input() then edits lines and has a history
            print("grebe chat; /help lists what can be typed", flush=True)
        while (line := self._read()) is not None:
            line = line.strip()
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        lines: list[str] = []
        while True:
            try:
                line = input(("  " if lines else "> ") if self._asks else "")
            except EOFError:
                if self._asks:
                    print()
                return "\n".join(lines) or None
            except KeyboardInterrupt:
                if not self._asks:
                    raise
                print("\nCtrl-D leaves")
                lines.clear()
                continue
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _command(self, line: str) -> bool:
        """False: leave."""
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/new":
            self._talk.clear()
        elif name in ("/undo", "/retry"):
            question = self._talk.take_back()
            if question is None:
                print("nothing was asked yet")
            elif name == "/retry":
                self._answer(question)
        elif name == "/think" and _think(self._talk, rest.strip()):
            pass
        elif name == "/stats":
            self._stats()
        else:
            print(HELP)
        return True

    def _answer(self, question: str) -> None:
        from .chat_session import pieces

        begin = time.perf_counter()
        reasoning = False
        try:
            with ProgressBar("prompt") as bar:
                answer = self._talk.ask(
                    question,
                    max_tokens=self._max_tokens,
                    sampling=self._sampling,
                    on_progress=bar,
                )
                with contextlib.closing(answer):
                    for is_reasoning, text in pieces(answer):
                        bar.close()
                        if is_reasoning != reasoning:
                            self._switch(is_reasoning)
                            reasoning = is_reasoning
                        sys.stdout.write(_visible(text))
                        sys.stdout.flush()
        except KeyboardInterrupt:
            if not self._asks:
                raise
            sys.stdout.write(" [stopped]")
        except ContextOverflowError as error:
            print(f"{error}; /new begins again")
            return
        finally:
            self._seconds = time.perf_counter() - begin
            if reasoning and self._colours:
                sys.stdout.write(PLAIN)
        print("\n", flush=True)

    def _switch(self, to_reasoning: bool) -> None:
        """Reasoning is dim, or stands between tags where there are no colours."""
        if self._colours:
            sys.stdout.write(DIM if to_reasoning else f"{PLAIN}\n\n")
        else:
            sys.stdout.write("<think>" if to_reasoning else "</think>\n")

    def _stats(self) -> None:
        usage = self._talk.usage
        if usage is None:
            print("nothing was asked yet")
            return
        print(
            f"{usage.prompt_tokens} tokens of prompt, {usage.cached_tokens} of them known; "
            f"{usage.completion_tokens} written; {self._seconds:.1f} s"
        )


def _think(talk: ChatSession, level: str) -> bool:
    """Sets how much the model reasons; False for what is no level."""
    if level == "off":
        talk.thinking = False
        return True
    for effort in ("low", "high", "max"):
        if level == effort:
            talk.thinking, talk.effort = True, effort
            return True
    return False


def _visible(text: str) -> str:
    """The text without what would drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
