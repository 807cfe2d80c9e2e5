// The public boundary of the engine: what src/ (the Python bindings) may use.
//
// Threads: a Model is thread-safe. A Session belongs to one caller at a time: two threads that use
// one session at once get InvalidArgument("session is busy"), never corrupted state; the quick
// looks (tokens, logits, pos, sizes) must not overlap a call that computes. Steps of
// different sessions of one model are serialised inside (one set of scratch buffers, one thread
// pool), so they may be issued from any threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/input_stats.h"
#include "core/cpu_features.h"
#include "core/error.h"
#include "io/gguf.h"
#include "model/config.h"
#include "model/weights.h"
#include "sampling/sampler.h"
#include "text/tokenizer.h"

namespace grebe {

struct LoadOptions {
  std::string backend = "auto";  ///< "auto" | "cpu" (later "metal", "cuda")
  int n_threads = 0;             ///< 0: usable_cores()
  std::string kv_rounding =
      "official";  ///< "official" (the trained graph) | "off" (plain f32 rows, for strict tests)
  std::string kernels =
      "fast";       ///< "fast" (int8 activations for quantized weights) | "exact" (f32 activations)
  std::string isa;  ///< "" = best; a name of core/cpu_features.h, for tests
  int prefill_chunk = 512;  ///< tokens of one prefill step, 1..4096; scratch grows with it
  std::string observe;      ///< "" | "inputs" (of weights) | "hidden" (states after each layer)
};

class KvCache;
struct RowsLost;
class Session;
class SnapshotReader;
class SnapshotWriter;
class Storage;

/// A KV cache in a directory; see session/kv_cache.h.
struct CacheOptions {
  std::string path;                            ///< made when it is not there
  uint64_t budget_bytes = uint64_t{32} << 30;  ///< of the directory
  uint64_t ram_bytes = uint64_t{1} << 30;      ///< of what could be read back or computed again
  uint64_t daily_write_bytes = 0;              ///< 0: no limit
  bool read_only = false;
  std::shared_ptr<Storage> storage;  ///< null: the file system; for tests
};

/// How a saved session goes on.
struct RestoreOptions {
  int64_t n_ctx = 0;                 ///< 0: as it was saved
  std::shared_ptr<KvCache> cache;    ///< of the model; takes what it does not have yet
  std::shared_ptr<Storage> storage;  ///< null: the file system; for tests
};

/// One session's part of a step: tokens to append, and which logits to produce.
struct StepInput {
  enum class Logits { kNone, kLast, kAll };
  Session* session = nullptr;
  std::span<const int32_t> tokens;  ///< at least 1
  Logits logits = Logits::kLast;
};

/// What a long call tells its caller while it computes; either function cancels by returning false
/// (the call throws Cancelled), and may be empty.
struct Progress {
  /// Called between chunks with (tokens done, tokens to do).
  std::function<bool(int64_t done, int64_t total)> chunk;
  /// Called between the layers of a chunk, at most every 50 ms, while the model is locked: it must
  /// not use the model.
  std::function<bool()> layer;
};

class Model : public std::enable_shared_from_this<Model> {
 public:
  /// Maps the file, checks every tensor, starts the threads. Throws the errors of error.h.
  static std::shared_ptr<Model> load(const std::string& path, const LoadOptions& options);
  ~Model();

  const GgufFile& file() const;
  const ModelConfig& config() const;
  const ModelWeights& weights() const;
  const Tokenizer* tokenizer() const;  ///< null when the file has none
  const LoadOptions& options() const;  ///< as resolved: backend, threads and isa filled in
  /// 64 hex digits; equal for equal weights and numbers. Large tensors are sampled, so that an 87
  /// GB file is identified in a moment: a file patched in place between the samples keeps its name.
  const std::string& fingerprint() const;
  /// What runs it: "cpu: avx512, 2 threads", "metal: Apple M3 Max".
  std::string device() const;
  /// The dispatches of the last step, where the backend has such, for tools: one line each,
  /// "kernel<TAB>barrier (0 or 1)<TAB>bytes of weights and rows that it reads".
  std::string trace() const;

  /// What the steps since the last call have shown, when loaded with `observe`; see
  /// backend/observer.h. Throws InvalidArgument when that was not observed.
  std::vector<InputStats> take_inputs();
  std::vector<std::vector<float>> take_hidden();

  /// n_ctx 0: config().max_context. Memory is taken as the session grows. With a cache (of this
  /// model) it continues from what is known of its tokens, and adds to it.
  std::shared_ptr<Session> session(int64_t n_ctx, const std::shared_ptr<KvCache>& cache = nullptr);
  /// Throws IoError, FormatError; InvalidArgument for an option out of range.
  std::shared_ptr<KvCache> open_cache(const CacheOptions& options);
  /// Makes a cache let go of what it holds in RAM beyond so many bytes.
  void trim_cache(KvCache& cache, uint64_t ram_bytes);
  /// The inverse of Session::snapshot. Throws FormatError (damaged), InvalidArgument (another
  /// model, naming both fingerprints; other settings; a cache for rows computed otherwise).
  std::shared_ptr<Session> restore(
      std::span<const uint8_t> snapshot, const RestoreOptions& options = {});
  /// The inverse of Session::save; throws IoError too.
  std::shared_ptr<Session> restore_file(
      const std::string& path, const RestoreOptions& options = {});

  /// Appends tokens to several sessions in one pass over the weights. All inputs together must not
  /// exceed options().prefill_chunk rows; sessions distinct. Bit-identical to stepping each alone.
  /// logits: f32[rows asked for, vocab] in input order, appended. On error every session is as
  /// before the call.
  void step(std::span<const StepInput> inputs, std::vector<float>& logits);

  /// Bytes of scratch buffers held by the engine now (not weights, not sessions).
  uint64_t scratch_bytes() const;

 private:
  friend class Session;
  Model();
  std::shared_ptr<Session> restore_from(SnapshotReader& in, const RestoreOptions& options);
  /// step() for sessions that the caller holds.
  void run_step(
      std::span<const StepInput> inputs, std::vector<float>& logits, const Progress& progress = {});
  void try_step(
      std::span<const StepInput> inputs, std::vector<float>& logits, const Progress& progress);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  ~Session();
  const std::shared_ptr<Model>& model() const;

  /// Makes the state cover exactly `tokens`, reusing the longest common prefix that can be reached;
  /// returns how many were computed. Leaves next-token logits. On ContextOverflow and
  /// InvalidArgument the session is unchanged; on any other error, Cancelled included, it covers a
  /// prefix of `tokens` and has logits only if that is where a chunk ended with them.
  /// With a cache the longest prefix that it knows counts as common; `marks` are positions that a
  /// later prompt may come back to (ends of messages): each is kept, rounded down to a multiple of
  /// 128.
  int64_t prefill(
      std::span<const int32_t> tokens,
      const Progress& progress = {},
      std::span<const int64_t> marks = {});
  /// The first part of prefill(): goes to the longest prefix of `tokens` that can be had without
  /// computing, all but the last token at most, and returns its length. The caller appends the rest
  /// by step(), in which other sessions may take part; `marks` count until the next resume() or
  /// prefill(). There are no logits if anything changed.
  int64_t resume(std::span<const int32_t> tokens, std::span<const int64_t> marks = {});
  /// Tells the cache that a turn is complete and the session may rest here or go on elsewhere.
  void end_turn();
  /// The cache that it was made with, or null.
  std::shared_ptr<KvCache> cache() const;
  /// Appends one token; logits() is then for the next one. On error the session is as before.
  void decode(int32_t token);
  /// Appends tokens; f32[n, vocab], row i for the position after tokens[i]. On InvalidArgument,
  /// ContextOverflow and OutOfMemory for the result the session is unchanged; on any other error it
  /// has the tokens of the chunks that were done.
  std::vector<float> evaluate(std::span<const int32_t> tokens, const Progress& progress = {});

  /// f32[vocab] for the next token. Throws InvalidArgument when there are none (empty session, or
  /// after a rewind to 0).
  std::span<const float> logits() const;
  bool has_logits() const;
  std::span<const int32_t> tokens() const;
  int64_t pos() const;  ///< number of tokens that the state covers
  int64_t n_ctx() const;
  uint64_t n_bytes()
      const;  ///< KV state: rows, windows, partial rows. Blocks shared with forks count in each.
  /// What checkpoints for rewinding hold beside that: at most kMaxCheckpoints windows.
  uint64_t checkpoint_bytes() const;

  /// A copy that shares all history; O(1) in its length.
  std::shared_ptr<Session> fork() const;
  /// Goes back to `pos` tokens (0 <= pos <= pos()): to the nearest checkpoint before it, then by
  /// replaying what lies between, one token at least, for its logits. Checkpoints lie at every 128
  /// tokens near the end and thin out with the distance from it, so going back d tokens replays at
  /// most 128 or a share of d. Returns the number of tokens replayed. On an error in the replay the
  /// session covers a prefix of the first `pos` tokens.
  int64_t rewind(int64_t pos, const Progress& progress = {});
  /// Everything needed to go on in another process, with the model's fingerprint and checksums.
  /// Rows that a cache's disk has lost are computed again; on an error therein the session covers a
  /// prefix of its tokens.
  std::vector<uint8_t> snapshot();
  /// The same bytes into a file, which then holds all of them or is as before: IoError.
  void save(const std::string& path, const std::shared_ptr<Storage>& storage = nullptr);

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  friend class Model;
  Session();
  void append(std::span<const int32_t> tokens, std::vector<float>* all, const Progress& progress);
  std::vector<int32_t> checked_goal(std::span<const int32_t> tokens) const;
  void set_marks(std::span<const int64_t> marks, int64_t size);
  void reach(std::span<const int32_t> goal, int64_t n_common, int64_t limit);
  void recover(const RowsLost& lost, const Progress& progress);
  void write(SnapshotWriter& out) const;
  std::unique_ptr<Impl> impl_;
};

}  // namespace grebe
