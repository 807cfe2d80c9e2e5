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

    def __init__(self, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, presence_penalty: float = 0.0, frequency_penalty: float = 0.0, logit_bias: Mapping[int, float] | None = None, seed: int = 0, top_logprobs: int = 0, first_draw: int = 0, vocab_size: int) -> None:
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
            first_draw: number of the first draw in the stream of the seed.
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

def blake3(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], cuts: Sequence[int] = []) -> bytes:
    """The hash, 32 bytes."""

def crc32c(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], crc: int = 0, portable: bool = False) -> int:
    """The checksum."""

def has_crc32c() -> bool:
    """Whether the processor has an instruction for it."""

class StorageLock:
    """Held until it is gone."""

class StorageFile:
    """A file of a Storage; closed when it is gone."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, n: int) -> bytes: ...

    def write(self, offset: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def sync(self) -> None: ...

    def truncate(self, size: int) -> None: ...

class Storage:
    """Files as a KV cache needs them."""

    def open(self, path: object, mode: str) -> StorageFile:
        """mode: read, read_write or create."""

    def exists(self, path: object) -> bool: ...

    def list(self, path: object) -> list: ...

    def make_directory(self, path: object) -> None: ...

    def remove(self, path: object) -> None: ...

    def sync_directory(self, path: object) -> None: ...

    def try_lock(self, path: object) -> StorageLock: ...

    def rename(self, old: object, new: object) -> None: ...

    def now(self) -> int: ...

def posix_storage() -> Storage:
    """The files of this machine."""

class FaultyStorage(Storage):
    """A Storage over another that fails and forgets as it is told."""

    def __init__(self, base: Storage | None = None, seed: int = 0) -> None: ...

    def add(self, op: str, action: str, *, first: int = 0, count: int | None = 1, path: str = '', errno: int = 5, n_bytes: int = 0, bit: int | None = None, seconds: float = 0.0, end: str = 'kill') -> None:
        """
        Plans what the operations first, first + 1, .. that match from now on meet. count None: all. See csrc/io/fault_plan.h.
        """

    def clear(self) -> None:
        """Empties the plan."""

    def keep_unsynced(self) -> None:
        """To be called before files are opened."""

    def power_loss(self) -> None: ...

    @property
    def has_power(self) -> bool: ...

    def set_clock_offset(self, seconds: int) -> None: ...

    @property
    def counts(self) -> dict[str, int]:
        """By operation."""

    @property
    def n_fired(self) -> int:
        """Entries of the plan met, each time."""

    def log(self) -> list[tuple[str, str, int, int, str]]:
        """(operation, path, offset, bytes, actions) of each."""

def record_id(kind: str, parent: bytes, tokens: Sequence[int]) -> bytes:
    """Name of the block or anchor that follows `parent` with these tokens."""

class Store:
    """A KV store on disk: see csrc/store/block_store.h."""

    def __init__(self, path: str | os.PathLike[str], *, budget_bytes: int = 34359738368, daily_write_bytes: int = 0, read_only: bool = False, storage: Storage | None = None) -> None:
        """Opens or creates the directory; storage is for tests."""

    def close(self) -> None:
        """Gives up the files; a second call does nothing."""

    def add_root(self, id: bytes, fingerprint: str, name: str, numerics: str) -> None: ...

    def roots(self) -> list[dict[str, Any]]: ...

    def records(self) -> list[dict[str, Any]]:
        """All of them, parents first."""

    def contains(self, keys: Sequence[tuple[str, bytes]]) -> list[bool]: ...

    def read(self, key: tuple[str, bytes]) -> bytes | None:
        """
        The payload as it is on the disk, unchecked; None when it is not there.
        """

    def tokens(self, key: tuple[str, bytes]) -> list[int] | None: ...

    def commit(self, records: list[dict[str, Any]]) -> list[str]:
        """
        Each record has kind, id, parent, root, pos, tokens and pages (bytes, without checksums). Returns committed, failed, refused, no_parent or read_only for each.
        """

    def write_queued(self, records: list[dict[str, Any]], max_queued_bytes: int = 1073741824, timeout: float = 30.0) -> list[str]:
        """
        The same through the thread that writes; "queue" for what it did not take.
        """

    def writer_stats(self) -> dict[str, Any]: ...

    def touch(self, keys: Sequence[tuple[str, bytes]]) -> None: ...

    def report_damage(self, key: tuple[str, bytes]) -> None: ...

    def remove(self, key: tuple[str, bytes]) -> int:
        """Drops a record and what follows it. Returns how many."""

    def remove_root(self, id: bytes) -> int: ...

    def maintain(self) -> bool:
        """One step of eviction and compaction; True when there is more to do."""

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> list[dict[str, Any]]:
        """Reads and checks everything. Returns the records that are damaged."""

    def stats(self) -> dict[str, Any]: ...

    @property
    def epoch(self) -> int: ...

class KvCache:
    """Known states in RAM and on disk; wrapped by grebe.Cache."""

    def stats(self) -> dict[str, Any]:
        """Counters."""

    def flush(self, timeout_s: float) -> bool:
        """Waits until what is worth writing is on disk; False when it is not."""

    def close(self, timeout_s: float) -> bool:
        """Flushes, then writes no more."""

class Model:
    """A loaded model; wrapped by grebe.Model."""

    @staticmethod
    def load(path: str | os.PathLike[str], *, backend: str, n_threads: int, kv_rounding: str, kernels: str, isa: str, prefill_chunk: int, observe: str = '') -> Model:
        """Maps the file and starts the threads. Releases the GIL."""

    def config(self) -> dict[str, Any]:
        """The fields of grebe.ModelConfig."""

    def trace(self) -> str:
        """
        The dispatches of the last step, a line each: kernel, barrier, bytes that it reads.
        """

    def take_inputs(self) -> list[tuple[str, numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.int64]]]:
        """
        Per weight the sums of squares f64[n_matrices, n_in] of what it was multiplied with since the last call, and how many rows. Of models loaded with observe='inputs'.
        """

    def take_hidden(self) -> list[numpy.typing.NDArray[numpy.float32]]:
        """
        Per layer f32[n, n_streams, hidden] of the rows since the last call. Of models loaded with observe='hidden'.
        """

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

    def session(self, n_ctx: int, cache: KvCache | None = None) -> Session:
        """A new session; n_ctx 0 means the model's maximum."""

    def open_cache(self, path: str | os.PathLike[str], *, budget_bytes: int, ram_bytes: int, daily_write_bytes: int, read_only: bool, storage: Storage | None = None) -> KvCache:
        """A KV cache in a directory. storage: for tests."""

    def trim_cache(self, cache: KvCache, ram_bytes: int) -> None:
        """Lets go of what the cache holds in RAM beyond so many bytes."""

    def restore(self, snapshot: bytes | bytearray | memoryview | str | os.PathLike[str], n_ctx: int = 0, cache: KvCache | None = None, storage: Storage | None = None) -> Session:
        """
        The inverse of Session.snapshot and of Session.save. storage: for tests.
        """

    def step(self, inputs: list[tuple[Session, Any]], logits: str) -> numpy.typing.NDArray[numpy.float32]:
        """One pass for several sessions; f32[rows asked for, vocab_size]."""

def to_tokens(tokens: Any, vocab_size: int) -> list[int]:
    """Token ids as a list, checked; what every call does with its tokens."""

class Session:
    """One sequence of tokens and its state; wrapped by grebe.Session."""

    def prefill(self, tokens: Any, on_progress: Callable[[int, int], object] | None = None, between_layers: Callable[[], object] | None = None, marks: Sequence[int] = []) -> int:
        """Makes the state cover exactly tokens; returns how many were computed."""

    def resume(self, tokens: Any, marks: Sequence[int] = []) -> int:
        """
        Goes to the longest prefix of tokens that needs no computing; returns its length.
        """

    def decode(self, token: Any, changes: int | None = None) -> None:
        """Appends one token; not when changes is given and differs."""

    def evaluate(self, tokens: Any, on_progress: Callable[[int, int], object] | None = None) -> numpy.typing.NDArray[numpy.float32]:
        """
        Appends tokens; f32[n, vocab_size], row i for the position after tokens[i].
        """

    def rewind(self, pos: int, on_progress: Callable[[int, int], object] | None = None) -> int:
        """Goes back to pos tokens; returns the number of tokens replayed."""

    def end_turn(self) -> None:
        """Tells the cache that a turn is complete."""

    def fork(self) -> Session:
        """A copy that shares all history."""

    def snapshot(self) -> bytes:
        """Everything needed to go on in another process."""

    def save(self, path: str | os.PathLike[str], storage: Storage | None = None) -> None:
        """The bytes of snapshot() into a file. storage: for tests."""

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

def rope_table(pos: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], compressed: bool) -> tuple:
    """Flash's (cos, sin) at the given positions, f32[n, 32] each."""

def rope(x: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], pos: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], compressed: bool, inverse: bool = False) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C')]: ...

def kv_round_trip(rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rope_dim: int, rope: str, isa: str = '') -> tuple: ...

def index_round_trip(rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> tuple: ...

class BackendOps:
    """
    Single ops of a backend, for tests and the doctor. Each call is one step of the backend on
    copies of its arrays. n is the number of rows of the step; a weight of a type is the bytes of
    its blocks, row after row.
    """

    def __init__(self, backend: str = 'cpu', isa: str = '', n_threads: int = 1, exact: bool = True) -> None:
        """
        Args:
            backend: a name that Model.load knows.
            isa: CPU instruction set; "" is the best.
            n_threads: CPU threads; 0 is all usable cores.
            exact: float32 arithmetic throughout.

        Raises:
            BackendUnavailableError: no such backend here.
        """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def elapsed_ms(self) -> float:
        """Time of the last call's step, without copies."""

    def hc_pre(self, X: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], fn: Annotated[NDArray, dict(order='C', device='cpu', writable=False)], base: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], iterations: int = 20, eps: float = 1e-06, dtype: str = 'F32') -> tuple:
        """
        Before a sublayer.

        Args:
            X: f32[n, s, d].
            fn: weight [(2 + s) s, s d]: f32 values, or the bytes of type dtype as u8[:].
            base: f32[(2 + s) s].
            scale: f32[3].
            norm: f32[d].
            iterations: of Sinkhorn's normalisation.
            eps: of both kinds.
            dtype: of fn.

        Returns:
            (x f32[n, d], post f32[n, s], comb f32[n, s, s]).
        """

    def hc_post(self, X: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], post: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], comb: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C')]:
        """
        After a sublayer: X f32[n, s, d], y f32[n, d], post f32[n, s], comb f32[n, s, s] -> the new X.
        """

    def hc_post_pre(self, X: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], post: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], comb: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], fn: Annotated[NDArray, dict(order='C', device='cpu', writable=False)], base: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], iterations: int = 20, eps: float = 1e-06, dtype: str = 'F32') -> tuple:
        """hc_post and then hc_pre in one step: (X, x, post, comb)."""

    def hc_head(self, X: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], fn: Annotated[NDArray, dict(order='C', device='cpu', writable=False)], base: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], eps: float = 1e-06, dtype: str = 'F32') -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """
        The output head's x f32[len(rows), d] of rows i32[:] of X f32[n, s, d]; fn [s, s d], base [s], scale [1].
        """

    def rms_norm(self, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], eps: float = 1e-06) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """x f32[n, width] normalised, times weight f32[width]."""

    def q_norm_rope(self, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], cos: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sin: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], eps: float = 1e-06) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C')]:
        """
        q f32[n, heads, head_dim], each head normalised, its end rotated; cos and sin f32[n, rope_dim / 2].
        """

    def route(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, n_used: int, scale: float, tid2eid: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None = None, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> tuple:
        """
        logits f32[n, e] -> (experts i32[n, n_used], weights f32[n, n_used]). bias f32[e] chooses, or tid2eid i32[vocab, n_used] by tokens i32[n].
        """

    def embed(self, weight: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], dtype: str, n_out: int, n_in: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], n_streams: int, scale: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C')]:
        """
        Rows tokens i32[n] of weight [n_out, n_in] as every stream: f32[n, n_streams, n_in].
        """

    def matmul(self, weight: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], dtype: str, n_out: int, n_in: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """
        f32[n, n_out] = x f32[n, n_in] times the transpose of weight [n_out, n_in]; scale u8[:] for F8_E4M3.
        """

    def matmul_bundle(self, weights: list, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, eps: float = 1e-06) -> list:
        """
        Products of one x f32[n, n_in], which rms_norm with norm f32[n_in] passes first unless it is None.

        Args:
            weights: (data u8[:], dtype, n_out) or (data, dtype, n_out, scale u8[:]) each.
            x: f32[n, n_in].
            norm: f32[n_in] or None.
            eps: of the norm.

        Returns:
            f32[n, n_out] of each.
        """

    def matmul_grouped(self, weight: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], dtype: str, n_groups: int, rank: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """
        Grouped output projection: rows [g rank, (g + 1) rank) of weight [n_groups rank, n_in] times part g of x f32[n, n_groups n_in] -> f32[n, n_groups rank].
        """

    def moe(self, weights: dict, n_experts: int, n_ff: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], experts: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], expert_weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], clamp: float = 10.0, shared_clamp: float = 10.0, n_shared_ff: int = 0) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """
        Routed and shared experts.

        Args:
            weights: gate and up [n_experts, n_ff, d], down [n_experts, d, n_ff]; and, or not,
                shared_gate, shared_up [n_shared_ff, d] and shared_down [d, n_shared_ff]. Each
                is (data u8[:], dtype) or (data, dtype, scale u8[:]).
            n_experts: routed experts.
            n_ff: width of a routed expert.
            x: f32[n, d].
            experts: i32[n, n_used].
            expert_weights: f32[n, n_used].
            clamp: of SwiGLU; 0 is none.
            shared_clamp: the shared expert's.
            n_shared_ff: width of the shared expert; 0 is n_ff.

        Returns:
            f32[n, d].
        """

    def route_moe(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, n_used: int, scale: float, weights: dict, n_ff: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], clamp: float = 10.0, shared_clamp: float = 10.0, n_shared_ff: int = 0, tid2eid: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None = None, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> tuple:
        """
        route and then moe in one step: (y, experts, expert_weights). Arguments as theirs.
        """

    def swiglu_mlp(self, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], up: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], down: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], clamp: float) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """
        One expert for all rows: x f32[n, d], gate and up f32[ff, d], down f32[d, ff].
        """

    def kv_rows(self, kv: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], cos: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sin: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], format: str = 'bf16', eps: float = 1e-06) -> Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C')]:
        """
        Raw rows of kv f32[n, d], normalised with norm f32[d], rotated and packed: u8[n, row_bytes]. format: "bf16", "f32" or "off".
        """

    def pool(self, kv: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], ape: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], dim: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """
        Rows finished by n tokens from position 0, before the norm: f32[n / ratio, dim]. kv and gate f32[n, width], ape f32[ratio, width]; width is dim, at ratio 4 twice that.
        """

    def pool_store(self, streams: list, tasks: list, ratio: int, cos: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sin: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], format: str = 'bf16', rows_per_block: int = 32, offset: int = 0, eps: float = 1e-06, raw: dict | None = None) -> list:
        """
        kv_rows (with raw), pool, store_kv_rows and store_index_rows in one step, as a layer calls them.

        Args:
            streams: the compressors, at most one of each kind: dicts of kind ("kv" or
                "index"), kv and gate f32[n, width], ape f32[ratio, width], norm f32[dim].
            tasks: the segments: dicts of row, n, pos; states, a list of f32[n_floats] or None
                (nothing pooled yet) for each stream; checkpoints, a list of positions. The last
                two may be missing.
            ratio: 4 or another.
            cos: f32[finished rows of all tasks, rope_dim / 2].
            sin: likewise.
            format: "bf16", "f32" or "off"; index rows are FP4 unless it is "off".
            rows_per_block: rows in a block of the history.
            offset: of the rows in each block, in bytes.
            eps: of the norms.
            raw: dict of kv f32[n, d], norm f32[d], cos, sin f32[n, rope_dim / 2].

        Returns:
            The packed raw rows u8[n, row_bytes] if raw is given, then for each task and each
            stream a dict of rows u8[finished, row_bytes], blocks (u8[:] each, zero where nothing
            was stored), state f32[n_floats] and checkpoints (f32[n_floats] each).
        """

    def attention(self, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sinks: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """
        One query of all heads over plain f32 rows, no rotation: q f32[h, d], rows f32[n, d], sinks f32[h].
        """

    def attention_tasks(self, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], sinks: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], cos: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sin: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], tasks: list, ratio: int, window_size: int, format: str = 'bf16', top_k: int = 0, norm_eps: float | None = None) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C')]:
        """
        Attention over packed rows.

        Args:
            q: f32[n, h, d], normalised and rotated unless norm_eps is given.
            sinks: f32[h].
            cos: f32[n, rope_dim / 2].
            sin: likewise.
            tasks: the segments: dicts of row, n, pos; ring u8[ring_rows, row_bytes] with
                position p at slot p % ring_rows; new_rows u8[n, row_bytes]; and unless ratio
                is 0, blocks (u8[offset + rows_per_block * row_bytes] each), rows_per_block,
                offset (0 when missing) and selected, i32[n, top_k] or None.
            ratio: 0 is the window alone.
            window_size: raw rows that a query sees, its own included.
            format: "bf16", "f32" or "off".
            top_k: width of selected.
            norm_eps: q_norm_rope first, in the same step.

        Returns:
            f32[n, h, d]; rows of no task are as in q (after q_norm_rope).
        """

    def index_select(self, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], pos: int, ratio: int, top_k: int) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C')]:
        """
        Rows i32[n, top_k] chosen among plain f32 rows, ascending, padded with -1; no rotation. Row i of q f32[n, h, d] sees (pos + i + 1) / ratio rows.
        """

    def index_select_tasks(self, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], cos: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sin: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], tasks: list, ratio: int, top_k: int, packed: bool = True) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C')]:
        """
        Index selection over packed rows.

        Args:
            q: f32[n, h, d] before rotation.
            weights: f32[n, h].
            cos: f32[n, rope_dim / 2].
            sin: likewise.
            tasks: dicts of row, n, pos, blocks, rows_per_block, offset as for
                attention_tasks.
            ratio: positions of a row.
            top_k: rows to choose.
            packed: FP4 rows, else f32.

        Returns:
            i32[n, top_k], ascending, padded with -1; -2 in the rows of no task.
        """

def bench_matmul(dtype: str, n_in: int, n_out: int, n: int, n_threads: int, seconds: float = 0.5, isa: str = '') -> list[float]:
    """
    Seconds of each call of y = x w^T with n rows of x, weights resident in memory.
    """

def quantizable_dtypes() -> list[str]:
    """Tensor types that quantize() makes."""

def quantize(dtype: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], importance: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, *, n_threads: int = 0, isa: str = '') -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C')]:
    """
    Blocks of f32[n_rows, n_in] as u8 bytes, with the least squared error weighted by the importance of the columns. The bytes do not depend on n_threads and isa.
    """
