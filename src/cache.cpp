// grebe._engine.KvCache: known states of a model in RAM and on disk. Policy is in
// csrc/session/kv_cache.h.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "io/storage.h"
#include "session/kv_cache.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

std::chrono::milliseconds to_ms(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3));
}

nb::dict stats_dict(const KvCache& cache) {
  CacheStats s;
  {
    const WithoutGil release;
    s = cache.stats();
  }
  nb::dict d;
  d["lookups"] = s.n_lookups;
  d["hits"] = s.n_hits;
  d["tokens_wanted"] = s.tokens_wanted;
  d["tokens_found"] = s.tokens_found;
  d["blocks_from_ram"] = s.blocks_from_ram;
  d["blocks_from_disk"] = s.blocks_from_disk;
  d["misses_unknown"] = s.misses_unknown;
  d["misses_no_anchor"] = s.misses_no_anchor;
  d["misses_damaged"] = s.misses_damaged;
  d["misses_memory"] = s.misses_memory;
  d["rows_lost"] = s.rows_lost;
  d["blocks_sealed"] = s.blocks_sealed;
  d["blocks_shared"] = s.blocks_shared;
  d["anchors_made"] = s.anchors_made;
  d["anchors_written"] = s.anchors_written;
  d["ram_bytes"] = s.ram_bytes + s.pager.frame_bytes;
  d["unsaved_bytes"] = s.unsaved_bytes;
  d["page_hits"] = s.pager.hits;
  d["page_misses"] = s.pager.misses;
  d["pages_prefetched"] = s.pager.prefetched;
  d["streamed_bytes"] = s.pager.streamed_bytes;
  d["queued_bytes"] = s.writer.queued_bytes;
  d["writing_paused"] = s.writer.paused;
  d["blocks_on_disk"] = s.store.n_blocks;
  d["anchors_on_disk"] = s.store.n_anchors;
  d["disk_bytes"] = s.store.file_bytes;
  d["live_bytes"] = s.store.live_bytes;
  d["payload_written"] = s.store.payload_written;
  d["bytes_written"] = s.store.bytes_written;
  d["bytes_read"] = s.store.bytes_read;
  d["records_evicted"] = s.store.records_evicted;
  d["records_damaged"] = s.store.records_damaged;
  d["write_failures"] = s.store.write_failures + s.store.sync_failures;
  d["read_failures"] = s.store.read_failures;
  d["refused_by_budget"] = s.store.refused_by_budget + s.store.refused_by_daily_budget;
  d["dropped_at_open"] = s.store.dropped_at_open;
  d["last_error"] = s.store.last_error;
  d["read_only"] = s.store.read_only;
  return d;
}

}  // namespace

void bind_cache(nb::module_& m) {
  nb::class_<KvCache>(m, "KvCache", "Known states in RAM and on disk; wrapped by grebe.Cache.")
      .def("stats", &stats_dict, nb::sig("def stats(self) -> dict[str, typing.Any]"), "Counters.")
      .def(
          "flush",
          [](KvCache& cache, double timeout_s) {
            const WithoutGil release;
            return cache.flush(to_ms(timeout_s));
          },
          "timeout_s"_a,
          "Waits until what is worth writing is on disk; False when it is not.")
      .def(
          "close",
          [](KvCache& cache, double timeout_s) {
            const WithoutGil release;
            return cache.close(to_ms(timeout_s));
          },
          "timeout_s"_a,
          "Flushes, then writes no more.");
}

}  // namespace grebe::bind
