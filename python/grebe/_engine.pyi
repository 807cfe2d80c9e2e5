"""The engine of grebe. Private; use the names of the package grebe."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray


version: str = '0.1.0'

def end_work() -> None:
    """Stops what computes in other threads, for good: Python is ending."""

class Tokenizer:
    """
    Byte-level BPE of DeepSeek V4: text to token ids and back. Immutable and thread-safe.

    A model brings its own (``model.tokenizer``); ``from_file`` reads a Hugging Face tokenizer.json.
    """

    @staticmethod
    def from_spec(tokens: Sequence, types: Sequence[int], merges: Sequence, bos: int = 0, eos: int = 1) -> Tokenizer:
        """
        Build from the arrays of a GGUF file.

        Args:
            tokens: by id; ordinary ones in the byte-level alphabet, special ones as their literal text.
            types: by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
            merges: (left, right) in the order of their rank.
            bos: id of the token that begins a text.
            eos: id of the token that ends one.

        Raises:
            FormatError: the arrays contradict each other.
        """

    @staticmethod
    def from_file(path: str | os.PathLike[str]) -> Tokenizer:
        """
        Read a Hugging Face ``tokenizer.json`` with DeepSeek V4's pre-tokenizer.

        Raises:
            StorageError: the file cannot be read.
            FormatError: it is not a tokenizer.json, or its parts contradict each other.
            UnsupportedModelError: it describes another kind of tokenizer.
        """

    def encode(self, text: str | bytes | bytearray, allow_special: bool = False) -> list[int]:
        """
        Token ids of a text; never adds bos or eos.

        Args:
            text: str, or bytes that need not be valid UTF-8. Half of a surrogate pair counts as U+FFFD.
            allow_special: whether the text of a special token stands for that token. Leave it off for anything that
                a user or a tool wrote: there it is ordinary text.
        """

    def decode(self, ids: Sequence[int] | numpy.typing.NDArray[numpy.integer[Any]]) -> str:
        """
        Text of the tokens, special ones included; bytes that are not UTF-8 become U+FFFD.
        """

    def decode_bytes(self, ids: Sequence[int] | numpy.typing.NDArray[numpy.integer[Any]]) -> bytes:
        """Bytes of the tokens, exactly."""

    def token_bytes(self, id: int) -> bytes:
        """Bytes of one token; a special token's literal text."""

    def find(self, text: str | bytes) -> int | None:
        """
        Id of the token whose text is exactly this (special tokens first), None when there is none.
        """

    def is_special(self, id: int) -> bool:
        """Whether the token is control, user defined or unused."""

    def stream(self) -> TextStream:
        """A new decoder for a text that arrives token by token."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def bos(self) -> int:
        """Id of the token that begins a text."""

    @property
    def eos(self) -> int:
        """Id of the token that ends a text."""

    def __len__(self) -> int: ...

    def __repr__(self) -> str: ...

class TextStream:
    """
    Decodes tokens one by one to text that is valid at every step: a character cut by a token's end waits for the rest.
    """

    def push(self, id: int) -> str:
        """Text that became complete with this token, possibly empty."""

    def finish(self) -> str:
        """What was held back, as U+FFFD. The stream can be used again."""

class Sampler:
    """
    Chooses tokens of one generation: parameters, random state and the counts that penalties need. Not thread-safe.
    """

    def __init__(self, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, presence_penalty: float = 0.0, frequency_penalty: float = 0.0, logit_bias: Mapping[int, float] | None = None, seed: int = 0, top_logprobs: int = 0, vocab_size: int) -> None:
        """
        Args:
            temperature: >= 0; 0 is the exact argmax, the lowest id on ties.
            top_k: keep the k best tokens; 0 is off.
            top_p: keep the best tokens that together reach this probability, in (0, 1].
            min_p: keep tokens of at least this share of the best one's probability, in [0, 1).
            repetition_penalty: > 0; divides positive, multiplies negative logits of tokens in prompt or output.
            presence_penalty: subtracted once from tokens in the output.
            frequency_penalty: subtracted from tokens in the output for every occurrence.
            logit_bias: added to the logits, by token id.
            seed: equal seeds and logits give equal tokens on every machine.
            top_logprobs: how many of the best tokens sample() reports, 0 to 1000.
            vocab_size: number of logits.

        Raises:
            InvalidArgumentError: names the parameter, its value and its range.
        """

    def observe_prompt(self, ids: Any) -> None:
        """Tell the sampler of prompt tokens, for the repetition penalty."""

    def sample(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], mask: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> tuple[int, float, list[tuple[int, float]]]:
        """
        Choose the next token and count it.

        Args:
            logits: f32[vocab_size]; -inf excludes a token.
            mask: u32[(vocab_size + 31) // 32 or more], bit i of the whole allows token i; None allows all.

        Returns:
            (token, log-probability, [(token, log-probability), ...] of the best top_logprobs tokens), the
            probabilities after bias and penalties, before temperature and truncation.

        Raises:
            BackendError: a logit is NaN or +inf, or all are -inf.
            InvalidArgumentError: wrong sizes, or a mask that allows nothing.
        """

def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a GGUF file, without loading it. See grebe.inspect."""

class Model:
    """A loaded model; wrapped by grebe.Model."""

    @staticmethod
    def load(path: str | os.PathLike[str], *, backend: str, n_threads: int, kv_rounding: str, kernels: str, isa: str, prefill_chunk: int) -> Model:
        """Maps the file and starts the threads. Releases the GIL."""

    def config(self) -> dict[str, Any]:
        """The fields of grebe.ModelConfig."""

    def options(self) -> dict[str, Any]:
        """
        The load options as resolved: backend, threads and instruction set filled in.
        """

    def weights(self) -> dict[str, Any]:
        """
        bytes_per_token, total_bytes, expert_bytes, and the names of ignored tensors.
        """

    @property
    def fingerprint(self) -> str:
        """64 hex digits."""

    @property
    def file_bytes(self) -> int: ...

    @property
    def scratch_bytes(self) -> int:
        """Scratch held by the engine now, without weights and sessions."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None when the file has no tokenizer."""

    def session(self, n_ctx: int) -> Session:
        """A new session; n_ctx 0 means the model's maximum."""

    def restore(self, snapshot: bytes | bytearray | memoryview) -> Session:
        """The inverse of Session.snapshot."""

    def step(self, inputs: list[tuple[Session, Any]], logits: str) -> numpy.typing.NDArray[numpy.float32]:
        """One pass for several sessions; f32[rows asked for, vocab_size]."""

def to_tokens(tokens: Any, vocab_size: int) -> list[int]:
    """Token ids as a list, checked; what every call does with its tokens."""

class Session:
    """One sequence of tokens and its state; wrapped by grebe.Session."""

    def prefill(self, tokens: Any, on_progress: Callable[[int, int], object] | None = None) -> int:
        """Makes the state cover exactly tokens; returns how many were computed."""

    def decode(self, token: Any, changes: int | None = None) -> None:
        """Appends one token; not when changes is given and differs."""

    def evaluate(self, tokens: Any, on_progress: Callable[[int, int], object] | None = None) -> numpy.typing.NDArray[numpy.float32]:
        """
        Appends tokens; f32[n, vocab_size], row i for the position after tokens[i].
        """

    def rewind(self, pos: int, on_progress: Callable[[int, int], object] | None = None) -> int:
        """Goes back to pos tokens; returns the number of tokens replayed."""

    def fork(self) -> Session:
        """A copy that shares all history."""

    def snapshot(self) -> bytes:
        """Everything needed to go on in another process."""

    @property
    def logits(self) -> numpy.typing.NDArray[numpy.float32]:
        """f32[vocab_size] for the next token, a copy."""

    @property
    def changes(self) -> int:
        """Number of calls so far that may have changed the state."""

    @property
    def has_logits(self) -> bool: ...

    @property
    def tokens(self) -> list[int]:
        """The tokens that the state covers."""

    @property
    def pos(self) -> int:
        """Number of tokens that the state covers."""

    @property
    def n_ctx(self) -> int: ...

    @property
    def n_bytes(self) -> int:
        """Bytes of KV state; blocks shared with forks count in each."""

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes that rewind checkpoints hold beside n_bytes."""

def dtypes() -> list[str]:
    """Tensor types that a weight may have."""

def dequantize(dtype: str, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], n_out: int, n_in: int, scale: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, n_experts: int = 1, i_expert: int = 0) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
    """f32[n_out, n_in] of one expert's rows, exactly."""

def matmul(x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], dtype: str, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], n_out: int, scale: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, *, isa: str = '', exact: bool = False, n_threads: int = 1) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
    """f32[n, n_out] = x f32[n, n_in] times the transpose of a weight."""

def f16_to_f32(x: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C')]: ...

def f32_to_f16(x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C')]: ...

def bf16_to_f32(x: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C')]: ...

def f32_to_bf16(x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C')]: ...

def e4m3_to_f32(x: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C')]: ...

def f32_to_e4m3(x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C')]: ...

def e8m0_to_f32(x: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C')]: ...

def e2m1_to_f32(x: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C')]: ...

def f32_to_e2m1(x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C')]: ...

def available_isas() -> list[str]:
    """Kernel tables that this build has and this machine can run, best last."""

def usable_cores() -> int:
    """Physical cores that this process may use."""

def measure_read_bandwidth(n_threads: int, seconds: float, buffer_bytes: int = 268435456) -> float:
    """Bytes per second read by n_threads from a buffer of buffer_bytes."""

def rope_frequencies(compressed: bool) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C')]:
    """Flash's angular frequencies."""

def rope(x: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], pos: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], compressed: bool, inverse: bool = False) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C')]: ...

def kv_round_trip(rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rope_dim: int, rope: str, isa: str = '') -> tuple: ...

def index_round_trip(rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> tuple: ...

class BackendOps:
    """Single ops of a CPU backend with exact kernels, for tests."""

    def __init__(self, isa: str = '', n_threads: int = 1) -> None: ...

    @property
    def description(self) -> str: ...

    def hc_pre(self, X: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], fn: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], base: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], iterations: int = 20, eps: float = 1e-06) -> tuple: ...

    def hc_post(self, X: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], post: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], comb: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C')]: ...

    def route(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], n_used: int, scale: float) -> tuple: ...

    def pool(self, kv: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], ape: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], dim: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]: ...

    def attention(self, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sinks: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]: ...

    def index_select(self, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], pos: int, ratio: int, top_k: int) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C')]: ...

    def swiglu_mlp(self, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], up: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], down: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], clamp: float) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]: ...

def bench_matmul(dtype: str, n_in: int, n_out: int, n: int, n_threads: int, seconds: float = 0.5, isa: str = '') -> list[float]:
    """
    Seconds of each call of y = x w^T with n rows of x, weights resident in memory.
    """
