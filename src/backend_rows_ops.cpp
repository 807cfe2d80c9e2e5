// BackendOps: the rows that a step adds to the cache.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <deque>

#include "backend_ops.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

auto kv_rows(
    BackendOps& ops,
    const Array<float, 2>& kv,
    const Array<float, 1>& norm,
    const Array<float, 2>& cos,
    const Array<float, 2>& sin,
    const std::string& format,
    double eps) {
  const size_t n = kv.shape(0), d = kv.shape(1);
  expect(norm.size() == d, "kv [n, d], norm [d]");
  const KvRowFormat f =
      kv_format(format, static_cast<int64_t>(d), static_cast<int64_t>(2 * cos.shape(1)));
  OpMemory memory(ops);
  const float *in = memory.copy(kv), *weight = memory.copy(norm);
  const RopeTable rope = memory.rope(cos, sin, n);
  uint8_t* out = memory.make<uint8_t>(n * f.row_bytes());
  ops.step([&] {
    ops.backend().kv_rows(
        in, weight, rope, static_cast<int64_t>(n), f, static_cast<float>(eps), out);
  });
  return to_array(out, n, f.row_bytes());
}

// Nothing pooled yet: maxima -inf, sums 0.
std::vector<float> empty_state(const PoolShape& shape) {
  std::vector<float> state(shape.n_floats(), 0.f);
  for (size_t part = 0; part < state.size(); part += 3 * shape.dim)
    std::fill_n(state.begin() + part, shape.dim, -INFINITY);
  return state;
}

// Rows finished by n tokens from position 0, before norm: f32[n / ratio, dim].
auto pool(
    BackendOps& ops,
    const Array<float, 2>& kv,
    const Array<float, 2>& gate,
    const Array<float, 2>& ape,
    int32_t dim) {
  PoolTask t;
  t.shape = {static_cast<int32_t>(ape.shape(0)), dim};
  const size_t n = kv.shape(0), rows = n / ape.shape(0),
               width = static_cast<size_t>(t.shape.width());
  expect(
      kv.shape(1) == width && gate.shape(0) == n && gate.shape(1) == width && ape.shape(1) == width,
      "kv and gate [n, width], ape [ratio, width]");
  OpMemory memory(ops);
  const std::vector<float> state = empty_state(t.shape);
  t.segment = {0, static_cast<int64_t>(n), 0};
  t.kv = memory.copy(kv);
  t.gate = memory.copy(gate);
  t.stride = static_cast<int64_t>(width);
  t.ape = memory.copy(ape);
  t.state_in = memory.copy(state.data(), state.size());
  t.state_out = memory.make<float>(state.size());
  t.rows = memory.make<float>(rows * dim);
  ops.step([&] { ops.backend().pool({&t, 1}); });
  return to_array(t.rows, rows, dim);
}

// A compressor of pool_store: inputs of all rows of the step, and where its rows go.
struct Stream {
  bool index;
  PoolShape shape;
  const float *kv, *gate, *ape, *norm;
  int64_t row_bytes;
};

struct Stored {
  PoolTask pool;
  std::vector<PoolCheckpoint> checkpoints;
  std::vector<float*> checkpoint_states;
  std::vector<uint8_t*> blocks;
  int64_t first_row, n_rows;
};

nb::list pool_store(
    BackendOps& ops,
    const nb::list& streams,
    const nb::list& tasks,
    int32_t ratio,
    const Array<float, 2>& cos,
    const Array<float, 2>& sin,
    const std::string& format,
    int32_t rows_per_block,
    int64_t offset,
    double eps,
    const std::optional<nb::dict>& raw) {
  expect(ratio >= 1 && rows_per_block >= 1 && offset >= 0, "ratio and rows_per_block >= 1");
  OpMemory memory(ops);
  size_t n = 0, finished = 0;
  std::vector<Segment> segments;
  std::vector<int64_t> row_begin;
  for (nb::handle item : tasks) {
    const nb::dict t = nb::cast<nb::dict>(item);
    const Segment s{
        nb::cast<int64_t>(t["row"]), nb::cast<int64_t>(t["n"]), nb::cast<int64_t>(t["pos"])};
    expect(s.row >= 0 && s.n >= 1 && s.pos >= 0, "task row >= 0, n >= 1, pos >= 0");
    segments.push_back(s);
    row_begin.push_back(static_cast<int64_t>(finished));
    finished += static_cast<size_t>((s.pos + s.n) / ratio - s.pos / ratio);
    n = std::max(n, static_cast<size_t>(s.row + s.n));
  }
  const RopeTable rope = memory.rope(cos, sin, finished);
  KvRowFormat kv_rows_format;
  IndexRowFormat index_rows_format;
  std::vector<Stream> s;
  for (nb::handle item : streams) {
    const nb::dict d = nb::cast<nb::dict>(item);
    const auto kv = OpMemory::cast<float, 2>(d["kv"], "kv"),
               gate = OpMemory::cast<float, 2>(d["gate"], "gate"),
               ape = OpMemory::cast<float, 2>(d["ape"], "ape");
    const auto norm = OpMemory::cast<float, 1>(d["norm"], "norm");
    Stream stream{};
    stream.index = nb::cast<std::string>(d["kind"]) == "index";
    stream.shape = {ratio, static_cast<int32_t>(norm.size())};
    const size_t width = static_cast<size_t>(stream.shape.width());
    expect(
        kv.shape(1) == width && gate.shape(1) == width && ape.shape(1) == width &&
            kv.shape(0) == gate.shape(0) && kv.shape(0) >= n &&
            ape.shape(0) == static_cast<size_t>(ratio) && 2 * rope.half <= stream.shape.dim,
        "kv and gate [n, width], ape [ratio, width], norm [dim]");
    stream.kv = memory.copy(kv);
    stream.gate = memory.copy(gate);
    stream.ape = memory.copy(ape);
    stream.norm = memory.copy(norm);
    if (stream.index) {
      index_rows_format = {format != "off", stream.shape.dim};
      expect(
          !index_rows_format.packed ||
              (stream.shape.dim >= 32 && (stream.shape.dim & (stream.shape.dim - 1)) == 0),
          "packed index rows are of a power of two >= 32");
      stream.row_bytes = index_rows_format.row_bytes();
    } else {
      kv_rows_format = kv_format(format, stream.shape.dim, 2 * rope.half);
      stream.row_bytes = kv_rows_format.row_bytes();
    }
    s.push_back(stream);
  }

  std::deque<Stored> stored;
  std::vector<PoolTask> pools;
  std::vector<StoreRowsTask> kv_stores, index_stores;
  for (size_t i = 0; i < segments.size(); i++) {
    const Segment& segment = segments[i];
    const nb::dict task = nb::cast<nb::dict>(tasks[i]);
    const nb::list states =
        task.contains("states") ? nb::cast<nb::list>(task["states"]) : nb::list();
    for (size_t j = 0; j < s.size(); j++) {
      const Stream& stream = s[j];
      Stored& out = stored.emplace_back();
      const size_t floats = static_cast<size_t>(stream.shape.n_floats());
      out.first_row = segment.pos / ratio;
      out.n_rows = (segment.pos + segment.n) / ratio - out.first_row;
      PoolTask& t = out.pool;
      t.shape = stream.shape;
      t.segment = segment;
      t.kv = stream.kv;
      t.gate = stream.gate;
      t.stride = stream.shape.width();
      t.ape = stream.ape;
      if (j < states.size() && !nb::handle(states[j]).is_none()) {
        const auto state = OpMemory::cast<float, 1>(states[j], "state");
        expect(state.size() == floats, "state f32[n_floats]");
        t.state_in = memory.copy(state);
      } else {
        t.state_in = memory.copy(empty_state(stream.shape).data(), floats);
      }
      t.state_out = memory.make<float>(floats);
      t.rows = memory.make<float>(out.n_rows * stream.shape.dim);
      if (task.contains("checkpoints")) {
        for (nb::handle pos : nb::cast<nb::list>(task["checkpoints"])) {
          out.checkpoint_states.push_back(memory.make<float>(floats));
          out.checkpoints.push_back({nb::cast<int64_t>(pos), out.checkpoint_states.back()});
          expect(
              out.checkpoints.back().pos > segment.pos &&
                  out.checkpoints.back().pos <= segment.pos + segment.n &&
                  (out.checkpoints.size() == 1 ||
                   out.checkpoints.back().pos > out.checkpoints[out.checkpoints.size() - 2].pos),
              "checkpoints ascending in (pos, pos + n]");
        }
      }
      t.checkpoints = out.checkpoints;
      pools.push_back(t);
      const int64_t end = out.first_row + out.n_rows;
      const int64_t n_blocks = (end + rows_per_block - 1) / rows_per_block;
      for (int64_t b = 0; b < n_blocks; b++)
        out.blocks.push_back(memory.make<uint8_t>(offset + rows_per_block * stream.row_bytes));
      if (out.n_rows == 0) continue;
      const int64_t at = row_begin[i] * rope.half;
      (stream.index ? index_stores : kv_stores)
          .push_back(
              {t.rows,
               out.n_rows,
               stream.norm,
               {rope.cos + at, rope.sin + at, rope.half},
               {out.blocks.data(), offset, rows_per_block, stream.row_bytes},
               out.first_row});
    }
  }

  const float *raw_kv = nullptr, *raw_norm = nullptr;
  uint8_t* raw_out = nullptr;
  RopeTable raw_rope;
  int64_t raw_n = 0;
  if (raw) {
    const auto kv = OpMemory::cast<float, 2>((*raw)["kv"], "kv"),
               raw_cos = OpMemory::cast<float, 2>((*raw)["cos"], "cos"),
               raw_sin = OpMemory::cast<float, 2>((*raw)["sin"], "sin");
    const auto norm = OpMemory::cast<float, 1>((*raw)["norm"], "norm");
    raw_n = static_cast<int64_t>(kv.shape(0));
    kv_rows_format = kv_format(
        format, static_cast<int64_t>(kv.shape(1)), static_cast<int64_t>(2 * raw_cos.shape(1)));
    expect(norm.size() == kv.shape(1), "raw kv [n, d], norm [d]");
    raw_kv = memory.copy(kv);
    raw_norm = memory.copy(norm);
    raw_rope = memory.rope(raw_cos, raw_sin, kv.shape(0));
    raw_out = memory.make<uint8_t>(raw_n * kv_rows_format.row_bytes());
  }
  const float e = static_cast<float>(eps);
  ops.step([&] {
    Backend& b = ops.backend();
    if (raw_kv) b.kv_rows(raw_kv, raw_norm, raw_rope, raw_n, kv_rows_format, e, raw_out);
    b.pool(pools);
    if (!kv_stores.empty()) b.store_kv_rows(kv_stores, kv_rows_format, e);
    if (!index_stores.empty()) b.store_index_rows(index_stores, index_rows_format, e);
  });

  nb::list results;
  if (raw_kv) results.append(to_array(raw_out, raw_n, kv_rows_format.row_bytes()));
  for (size_t i = 0; i < stored.size(); i++) {
    const Stored& out = stored[i];
    const Stream& stream = s[i % s.size()];
    const size_t floats = static_cast<size_t>(stream.shape.n_floats());
    std::vector<uint8_t> rows;
    for (int64_t r = out.first_row; r < out.first_row + out.n_rows; r++) {
      const uint8_t* row =
          out.blocks[r / rows_per_block] + offset + r % rows_per_block * stream.row_bytes;
      rows.insert(rows.end(), row, row + stream.row_bytes);
    }
    nb::list blocks, checkpoints;
    for (const uint8_t* block : out.blocks)
      blocks.append(to_array(block, offset + rows_per_block * stream.row_bytes));
    for (const float* state : out.checkpoint_states) checkpoints.append(to_array(state, floats));
    nb::dict result;
    result["rows"] = to_numpy(std::move(rows), out.n_rows, stream.row_bytes);
    result["blocks"] = blocks;
    result["state"] = to_array(out.pool.state_out, floats);
    result["checkpoints"] = checkpoints;
    results.append(result);
  }
  return results;
}

}  // namespace

void bind_rows_ops(nb::class_<BackendOps>& c) {
  c.def(
       "kv_rows",
       &kv_rows,
       "kv"_a,
       "norm"_a,
       "cos"_a,
       "sin"_a,
       "format"_a = "bf16",
       "eps"_a = 1e-6,
       "Raw rows of kv f32[n, d], normalised with norm f32[d], rotated and packed: u8[n, "
       "row_bytes]. format: \"bf16\", \"f32\" or \"off\".")
      .def(
          "pool",
          &pool,
          "kv"_a,
          "gate"_a,
          "ape"_a,
          "dim"_a,
          "Rows finished by n tokens from position 0, before the norm: f32[n / ratio, dim]. kv and "
          "gate f32[n, width], ape f32[ratio, width]; width is dim, at ratio 4 twice that.")
      .def(
          "pool_store",
          &pool_store,
          "streams"_a,
          "tasks"_a,
          "ratio"_a,
          "cos"_a,
          "sin"_a,
          "format"_a = "bf16",
          "rows_per_block"_a = 32,
          "offset"_a = 0,
          "eps"_a = 1e-6,
          "raw"_a = nb::none(),
          "kv_rows (with raw), pool, store_kv_rows and store_index_rows in one step, as a layer "
          "calls them.\n"
          "\n"
          "Args:\n"
          "    streams: the compressors, at most one of each kind: dicts of kind (\"kv\" or\n"
          "        \"index\"), kv and gate f32[n, width], ape f32[ratio, width], norm f32[dim].\n"
          "    tasks: the segments: dicts of row, n, pos; states, a list of f32[n_floats] or None\n"
          "        (nothing pooled yet) for each stream; checkpoints, a list of positions. The "
          "last\n"
          "        two may be missing.\n"
          "    ratio: 4 or another.\n"
          "    cos: f32[finished rows of all tasks, rope_dim / 2].\n"
          "    sin: likewise.\n"
          "    format: \"bf16\", \"f32\" or \"off\"; index rows are FP4 unless it is \"off\".\n"
          "    rows_per_block: rows in a block of the history.\n"
          "    offset: of the rows in each block, in bytes.\n"
          "    eps: of the norms.\n"
          "    raw: dict of kv f32[n, d], norm f32[d], cos, sin f32[n, rope_dim / 2].\n"
          "\n"
          "Returns:\n"
          "    The packed raw rows u8[n, row_bytes] if raw is given, then for each task and each\n"
          "    stream a dict of rows u8[finished, row_bytes], blocks (u8[:] each, zero where "
          "nothing\n"
          "    was stored), state f32[n_floats] and checkpoints (f32[n_floats] each).");
}

}  // namespace grebe::bind
