// BackendOps: attention and the indexer.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <deque>

#include "backend_ops.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

// One query over plain f32 rows, no rotation.
auto attention(
    BackendOps& ops,
    const Array<float, 2>& q,
    const Array<float, 2>& rows,
    const Array<float, 1>& sinks) {
  const size_t heads = q.shape(0), d = q.shape(1), n = rows.shape(0);
  expect(
      rows.shape(1) == d && sinks.size() == heads && d % 16 == 0 && n >= 1,
      "q [h, d], rows [n, d], sinks [h]");
  OpMemory memory(ops);
  AttentionTask t;
  t.segment = {0, 1, static_cast<int64_t>(n) - 1};
  t.ring = reinterpret_cast<const uint8_t*>(memory.copy(rows));
  t.ring_rows = static_cast<int32_t>(n);
  t.new_rows = reinterpret_cast<const uint8_t*>(memory.copy(rows.data() + (n - 1) * d, d));
  float* out = memory.copy(q);
  const float* s = memory.copy(sinks);
  const KvRowFormat format{KvRowFormat::Kind::kF32, static_cast<int32_t>(d), 0};
  ops.step([&] {
    ops.backend().attention(
        {&t, 1}, format, out, {}, s, static_cast<int32_t>(heads), static_cast<int32_t>(n));
  });
  return to_array(out, heads, d);
}

// The history of a task: blocks u8[offset + rows_per_block * row_bytes] each. The list of their
// addresses lives as long as the stream.
struct History {
  std::vector<uint8_t*> blocks;
  RowStream stream;
};

void read_history(
    OpMemory& memory, const nb::dict& task, int64_t row_bytes, int64_t visible, History& out) {
  const int32_t rows_per_block = nb::cast<int32_t>(task["rows_per_block"]);
  const int64_t offset = task.contains("offset") ? nb::cast<int64_t>(task["offset"]) : 0;
  expect(rows_per_block >= 1 && offset >= 0, "rows_per_block >= 1");
  for (nb::handle block : nb::cast<nb::list>(task["blocks"])) {
    const auto bytes = OpMemory::cast<uint8_t, 1>(block, "a block");
    expect(
        bytes.size() == static_cast<size_t>(offset + rows_per_block * row_bytes),
        "blocks of offset + rows_per_block * row_bytes bytes");
    out.blocks.push_back(memory.copy(bytes));
  }
  expect(
      static_cast<int64_t>(out.blocks.size()) * rows_per_block >= visible,
      "blocks for all visible rows");
  out.stream = {out.blocks.data(), offset, rows_per_block, row_bytes};
}

Segment segment_of(const nb::dict& task, size_t n) {
  const Segment s{
      nb::cast<int64_t>(task["row"]), nb::cast<int64_t>(task["n"]), nb::cast<int64_t>(task["pos"])};
  expect(
      s.row >= 0 && s.n >= 1 && s.pos >= 0 && static_cast<size_t>(s.row + s.n) <= n,
      "task rows [row, row + n) of the step");
  return s;
}

auto attention_tasks(
    BackendOps& ops,
    const Array<float, 3>& q,
    const Array<float, 1>& sinks,
    const Array<float, 2>& cos,
    const Array<float, 2>& sin,
    const nb::list& tasks,
    int32_t ratio,
    int32_t window_size,
    const std::string& format,
    int32_t top_k,
    const std::optional<double>& norm_eps) {
  const size_t n = q.shape(0), heads = q.shape(1), d = q.shape(2);
  expect(sinks.size() == heads && window_size >= 1, "q [n, h, d], sinks [h]");
  const KvRowFormat f =
      kv_format(format, static_cast<int64_t>(d), static_cast<int64_t>(2 * cos.shape(1)));
  const size_t row_bytes = static_cast<size_t>(f.row_bytes());
  OpMemory memory(ops);
  std::deque<History> histories;
  std::vector<AttentionTask> list;
  for (nb::handle item : tasks) {
    const nb::dict task = nb::cast<nb::dict>(item);
    AttentionTask t;
    t.segment = segment_of(task, n);
    const auto ring = OpMemory::cast<uint8_t, 2>(task["ring"], "ring"),
               new_rows = OpMemory::cast<uint8_t, 2>(task["new_rows"], "new_rows");
    expect(
        ring.shape(0) >= static_cast<size_t>(window_size) && ring.shape(1) == row_bytes &&
            new_rows.shape(0) == static_cast<size_t>(t.segment.n) && new_rows.shape(1) == row_bytes,
        "ring u8[>= window_size, row_bytes], new_rows u8[n, row_bytes]");
    t.ring = memory.copy(ring);
    t.ring_rows = static_cast<int32_t>(ring.shape(0));
    t.new_rows = memory.copy(new_rows);
    t.ratio = ratio;
    t.top_k = top_k;
    if (ratio != 0) {
      const int64_t visible = (t.segment.pos + t.segment.n) / ratio;
      read_history(memory, task, f.row_bytes(), visible, histories.emplace_back());
      t.rows = histories.back().stream;
      if (task.contains("selected") && !nb::handle(task["selected"]).is_none()) {
        const auto selected = OpMemory::cast<int32_t, 2>(task["selected"], "selected");
        expect(
            selected.shape(0) == static_cast<size_t>(t.segment.n) &&
                selected.shape(1) == static_cast<size_t>(top_k),
            "selected i32[n, top_k]");
        for (size_t i = 0; i < selected.size(); i++)
          expect(selected.data()[i] >= -1 && selected.data()[i] < visible, "selected rows visible");
        t.selected = memory.copy(selected);
      }
    }
    list.push_back(t);
  }
  float* out = memory.copy(q);
  const float* s = memory.copy(sinks);
  const RopeTable rope = memory.rope(cos, sin, n);
  const int32_t n_heads = static_cast<int32_t>(heads);
  ops.step([&] {
    if (norm_eps) {
      ops.backend().q_norm_rope(
          out,
          rope,
          static_cast<int64_t>(n),
          n_heads,
          static_cast<int32_t>(d),
          static_cast<float>(*norm_eps));
    }
    ops.backend().attention(list, f, out, rope, s, n_heads, window_size);
  });
  return to_array(out, n, heads, d);
}

// top_k best of f32 index rows for each query row i, of which (pos + i + 1) / ratio are visible;
// -1 pads.
auto index_select(
    BackendOps& ops,
    const Array<float, 3>& q,
    const Array<float, 2>& weights,
    const Array<float, 2>& rows,
    int64_t pos,
    int32_t ratio,
    int32_t top_k) {
  const size_t n = q.shape(0), heads = q.shape(1), d = q.shape(2);
  expect(
      weights.size() == n * heads && rows.shape(1) == d && top_k >= 1 && ratio >= 1 && pos >= 0 &&
          (pos + static_cast<int64_t>(n)) / ratio <= static_cast<int64_t>(rows.shape(0)),
      "q [n, h, d], weights [n, h], rows [>= (pos + n) / ratio, d]");
  OpMemory memory(ops);
  uint8_t* block = reinterpret_cast<uint8_t*>(memory.copy(rows));
  float* queries = memory.copy(q);
  const float* w = memory.copy(weights);
  const IndexRowFormat format{false, static_cast<int32_t>(d)};
  int32_t* selected = memory.make<int32_t>(n * top_k);
  const IndexTask t{
      {0, static_cast<int64_t>(n), pos},
      {&block, 0, static_cast<int32_t>(rows.shape(0)), format.row_bytes()},
      selected};
  ops.step([&] {
    ops.backend().index_select(
        {&t, 1},
        {static_cast<int32_t>(heads), top_k, ratio, format},
        queries,
        {},
        w,
        static_cast<int64_t>(n));
  });
  return to_array(selected, n, top_k);
}

auto index_select_tasks(
    BackendOps& ops,
    const Array<float, 3>& q,
    const Array<float, 2>& weights,
    const Array<float, 2>& cos,
    const Array<float, 2>& sin,
    const nb::list& tasks,
    int32_t ratio,
    int32_t top_k,
    bool packed) {
  const size_t n = q.shape(0), heads = q.shape(1), d = q.shape(2);
  expect(
      weights.shape(0) == n && weights.shape(1) == heads && top_k >= 1 && ratio >= 1 &&
          2 * cos.shape(1) <= d && (!packed || (d >= 32 && (d & (d - 1)) == 0)),
      "q [n, h, d], weights [n, h]; packed: d a power of two >= 32");
  const IndexRowFormat format{packed, static_cast<int32_t>(d)};
  OpMemory memory(ops);
  float* queries = memory.copy(q);
  const float* w = memory.copy(weights);
  const RopeTable rope = memory.rope(cos, sin, n);
  const std::vector<int32_t> untouched(n * top_k, -2);
  int32_t* selected = memory.copy(untouched.data(), untouched.size());
  std::deque<History> histories;
  std::vector<IndexTask> list;
  for (nb::handle item : tasks) {
    const nb::dict task = nb::cast<nb::dict>(item);
    IndexTask t;
    t.segment = segment_of(task, n);
    const int64_t visible = (t.segment.pos + t.segment.n) / ratio;
    read_history(memory, task, format.row_bytes(), visible, histories.emplace_back());
    t.rows = histories.back().stream;
    t.selected = selected + t.segment.row * top_k;
    list.push_back(t);
  }
  ops.step([&] {
    ops.backend().index_select(
        list,
        {static_cast<int32_t>(heads), top_k, ratio, format},
        queries,
        rope,
        w,
        static_cast<int64_t>(n));
  });
  return to_array(selected, n, top_k);
}

}  // namespace

void bind_attention_ops(nb::class_<BackendOps>& c) {
  c.def(
       "attention",
       &attention,
       "q"_a,
       "rows"_a,
       "sinks"_a,
       "One query of all heads over plain f32 rows, no rotation: q f32[h, d], rows f32[n, d], "
       "sinks f32[h].")
      .def(
          "attention_tasks",
          &attention_tasks,
          "q"_a,
          "sinks"_a,
          "cos"_a,
          "sin"_a,
          "tasks"_a,
          "ratio"_a,
          "window_size"_a,
          "format"_a = "bf16",
          "top_k"_a = 0,
          "norm_eps"_a = nb::none(),
          "Attention over packed rows.\n"
          "\n"
          "Args:\n"
          "    q: f32[n, h, d], normalised and rotated unless norm_eps is given.\n"
          "    sinks: f32[h].\n"
          "    cos: f32[n, rope_dim / 2].\n"
          "    sin: likewise.\n"
          "    tasks: the segments: dicts of row, n, pos; ring u8[ring_rows, row_bytes] with\n"
          "        position p at slot p % ring_rows; new_rows u8[n, row_bytes]; and unless ratio\n"
          "        is 0, blocks (u8[offset + rows_per_block * row_bytes] each), rows_per_block,\n"
          "        offset (0 when missing) and selected, i32[n, top_k] or None.\n"
          "    ratio: 0 is the window alone.\n"
          "    window_size: raw rows that a query sees, its own included.\n"
          "    format: \"bf16\", \"f32\" or \"off\".\n"
          "    top_k: width of selected.\n"
          "    norm_eps: q_norm_rope first, in the same step.\n"
          "\n"
          "Returns:\n"
          "    f32[n, h, d]; rows of no task are as in q (after q_norm_rope).")
      .def(
          "index_select",
          &index_select,
          "q"_a,
          "weights"_a,
          "rows"_a,
          "pos"_a,
          "ratio"_a,
          "top_k"_a,
          "Rows i32[n, top_k] chosen among plain f32 rows, ascending, padded with -1; no "
          "rotation. Row i of q f32[n, h, d] sees (pos + i + 1) / ratio rows.")
      .def(
          "index_select_tasks",
          &index_select_tasks,
          "q"_a,
          "weights"_a,
          "cos"_a,
          "sin"_a,
          "tasks"_a,
          "ratio"_a,
          "top_k"_a,
          "packed"_a = true,
          "Index selection over packed rows.\n"
          "\n"
          "Args:\n"
          "    q: f32[n, h, d] before rotation.\n"
          "    weights: f32[n, h].\n"
          "    cos: f32[n, rope_dim / 2].\n"
          "    sin: likewise.\n"
          "    tasks: dicts of row, n, pos, blocks, rows_per_block, offset as for\n"
          "        attention_tasks.\n"
          "    ratio: positions of a row.\n"
          "    top_k: rows to choose.\n"
          "    packed: FP4 rows, else f32.\n"
          "\n"
          "Returns:\n"
          "    i32[n, top_k], ascending, padded with -1; -2 in the rows of no task.");
}

}  // namespace grebe::bind
