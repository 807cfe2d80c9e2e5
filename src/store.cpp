// Store: the KV store on disk for the commands of `grebe cache`, and with faults for its tests.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>

#include "bindings.h"
#include "io/storage.h"
#include "store/block_store.h"
#include "store/store_writer.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

struct BoundStore {
  std::shared_ptr<BlockStore> store;
  std::shared_ptr<StoreWriter> writer;  // null: not started

  BlockStore& get() const {
    if (!store) throw InvalidArgument("the store is closed");
    return *store;
  }
};

nb::bytes to_bytes(const Digest& d) { return nb::bytes(d.bytes.data(), d.bytes.size()); }

Digest to_digest(const nb::bytes& b, const char* what) {
  Digest d;
  if (b.size() != d.bytes.size())
    throw InvalidArgument(
        std::string(what) + " has " + std::to_string(b.size()) + " bytes; 32 are expected");
  std::memcpy(d.bytes.data(), b.c_str(), d.bytes.size());
  return d;
}

RecordKind to_kind(const std::string& kind) {
  if (kind == "block") return RecordKind::kBlock;
  if (kind == "anchor") return RecordKind::kAnchor;
  throw InvalidArgument("kind is '" + kind + "'; block or anchor is expected");
}
const char* kind_name(RecordKind kind) { return kind == RecordKind::kBlock ? "block" : "anchor"; }

using Key = std::pair<std::string, nb::bytes>;
RecordKey to_key(const Key& key) { return {to_kind(key.first), to_digest(key.second, "id")}; }

std::vector<RecordKey> to_keys(const std::vector<Key>& keys) {
  std::vector<RecordKey> out;
  for (const Key& key : keys) out.push_back(to_key(key));
  return out;
}

nb::dict info_dict(const RecordInfo& r) {
  nb::dict d;
  d["kind"] = kind_name(r.key.kind);
  d["id"] = to_bytes(r.key.id);
  d["parent"] = to_bytes(r.parent);
  d["root"] = to_bytes(r.root);
  d["pos"] = r.pos;
  d["bytes"] = r.bytes;
  return d;
}

// Of pages of any sizes; equal ones in a row are a group. Adds the checksums.
NewRecord to_record(const nb::dict& d) {
  NewRecord r;
  r.info.key = {
      to_kind(nb::cast<std::string>(d["kind"])), to_digest(nb::cast<nb::bytes>(d["id"]), "id")};
  r.info.parent = to_digest(nb::cast<nb::bytes>(d["parent"]), "parent");
  r.info.root = to_digest(nb::cast<nb::bytes>(d["root"]), "root");
  r.info.pos = nb::cast<int64_t>(d["pos"]);
  r.tokens = nb::cast<std::vector<int32_t>>(d["tokens"]);
  uint32_t number = 0;
  for (nb::handle object : d["pages"]) {
    const nb::bytes page = nb::cast<nb::bytes>(object);
    const uint32_t n = static_cast<uint32_t>(page.size());
    const uint32_t sum = page_checksum(r.info.key.id, number++, page.c_str(), n);
    const uint8_t* p = reinterpret_cast<const uint8_t*>(page.c_str());
    r.payload.insert(r.payload.end(), p, p + n);
    const uint8_t* s = reinterpret_cast<const uint8_t*>(&sum);
    r.payload.insert(r.payload.end(), s, s + kPageChecksumBytes);
    if (!r.groups.empty() && r.groups.back().bytes == n + kPageChecksumBytes)
      r.groups.back().n_pages++;
    else
      r.groups.push_back({1, n + kPageChecksumBytes});
  }
  r.info.bytes = r.payload.size();
  return r;
}

std::vector<NewRecord> to_records(const nb::list& records) {
  std::vector<NewRecord> out;
  for (nb::handle d : records) out.push_back(to_record(nb::cast<nb::dict>(d)));
  return out;
}

const char* result_name(CommitResult r) {
  constexpr const char* kNames[] = {"committed", "failed", "refused", "no_parent", "read_only"};
  return kNames[static_cast<int>(r)];
}

template <class F>
auto released(F&& f) {
  const WithoutGil release;
  return f();
}

void open(
    BoundStore* self,
    nb::object path,
    uint64_t budget_bytes,
    uint64_t daily_write_bytes,
    bool read_only,
    std::shared_ptr<Storage> storage) {
  StoreOptions options;
  options.path = to_path(path);
  options.budget_bytes = budget_bytes;
  options.daily_write_bytes = daily_write_bytes;
  options.read_only = read_only;
  options.storage = std::move(storage);
  new (self) BoundStore{released([&] { return BlockStore::open(options); }), nullptr};
}

nb::dict stats_dict(const BoundStore& self) {
  const StoreStats s = self.get().stats();
  nb::dict d;
#define GREBE_FIELD(field) d[#field] = s.field
  GREBE_FIELD(n_blocks);
  GREBE_FIELD(n_anchors);
  GREBE_FIELD(n_segments);
  GREBE_FIELD(n_roots);
  GREBE_FIELD(live_bytes);
  GREBE_FIELD(file_bytes);
  GREBE_FIELD(payload_written);
  GREBE_FIELD(bytes_written);
  GREBE_FIELD(written_today);
  GREBE_FIELD(bytes_read);
  GREBE_FIELD(records_evicted);
  GREBE_FIELD(records_compacted);
  GREBE_FIELD(segments_removed);
  GREBE_FIELD(records_damaged);
  GREBE_FIELD(descendants_dropped);
  GREBE_FIELD(write_failures);
  GREBE_FIELD(read_failures);
  GREBE_FIELD(sync_failures);
  GREBE_FIELD(refused_by_daily_budget);
  GREBE_FIELD(refused_by_budget);
  GREBE_FIELD(dropped_at_open_bytes);
  GREBE_FIELD(dropped_at_open);
  GREBE_FIELD(last_error);
  GREBE_FIELD(read_only);
#undef GREBE_FIELD
  return d;
}

nb::list roots_list(const BoundStore& self) {
  nb::list out;
  for (const RootInfo& r : self.get().roots()) {
    nb::dict d;
    d["id"] = to_bytes(r.id);
    d["fingerprint"] = r.fingerprint;
    d["name"] = nb::steal(
        PyUnicode_DecodeUTF8(r.name.data(), static_cast<Py_ssize_t>(r.name.size()), "replace"));
    d["numerics"] = r.numerics;
    out.append(d);
  }
  return out;
}

nb::list records_list(const BoundStore& self) {
  const BlockStore& store = self.get();
  nb::list out;
  for (const RecordInfo& r : store.records()) {
    nb::dict d = info_dict(r);
    const RecordUse use = store.use(r.key);
    d["hits"] = use.hits;
    d["age"] = use.age;
    out.append(d);
  }
  return out;
}

nb::object read(const BoundStore& self, const Key& key_object) {
  const RecordKey key = to_key(key_object);
  BlockStore& store = self.get();
  std::vector<uint8_t> payload;
  const bool found = released([&] {
    const auto info = store.find(key);
    const auto view = info ? store.view(key) : std::nullopt;
    if (!view) return false;
    payload.resize(info->bytes);
    return view->read(0, payload.data(), payload.size());
  });
  if (!found) return nb::none();
  return nb::bytes(payload.data(), payload.size());
}

nb::list verify(const BoundStore& self, nb::object on_progress) {
  BlockStore& store = self.get();
  std::vector<RecordInfo> damaged = compute(on_progress, [&](const Progress& progress) {
    return store.verify([&](uint64_t done, uint64_t total) {
      return progress.chunk(static_cast<int64_t>(done), static_cast<int64_t>(total));
    });
  });
  nb::list out;
  for (const RecordInfo& r : damaged) out.append(info_dict(r));
  return out;
}

// What the writer has done with records handed to it, in the order in which it was done.
nb::list write_queued(
    BoundStore& self, const nb::list& records, uint64_t max_queued_bytes, double timeout) {
  struct Shared {
    std::vector<NewRecord> records;
    std::vector<const char*> results;
  };
  auto shared = std::make_shared<Shared>();
  shared->records = to_records(records);
  shared->results.assign(shared->records.size(), "queue");
  self.get();
  released([&] {
    if (!self.writer) self.writer = std::make_shared<StoreWriter>(self.store, max_queued_bytes);
    for (size_t i = 0; i < shared->records.size(); i++) {
      const RecordInfo& info = shared->records[i].info;
      self.writer->submit(
          {info.key,
           info.bytes,
           [shared, i] { return shared->records[i]; },
           [shared, i](CommitResult r) { shared->results[i] = result_name(r); }});
    }
    if (!self.writer->flush(std::chrono::milliseconds(static_cast<int64_t>(timeout * 1000))))
      throw Error("the writer has not finished in time");
  });
  nb::list out;
  for (const char* r : shared->results) out.append(r);
  return out;
}

nb::dict writer_stats(const BoundStore& self) {
  const WriterStats s = self.writer ? self.writer->stats() : WriterStats();
  nb::dict d;
  d["n_queued"] = s.n_queued;
  d["queued_bytes"] = s.queued_bytes;
  d["n_committed"] = s.n_committed;
  d["n_failed"] = s.n_failed;
  d["n_refused_by_queue"] = s.n_refused_by_queue;
  d["paused"] = s.paused;
  return d;
}

}  // namespace

void bind_store(nb::module_& m) {
  m.def(
      "record_id",
      [](const std::string& kind, const nb::bytes& parent, const std::vector<int32_t>& tokens) {
        return to_bytes(record_id(to_kind(kind), to_digest(parent, "parent"), tokens));
      },
      "kind"_a,
      "parent"_a,
      "tokens"_a,
      "Name of the block or anchor that follows `parent` with these tokens.");
  nb::class_<BoundStore>(m, "Store", "A KV store on disk: see csrc/store/block_store.h.")
      .def(
          "__init__",
          &open,
          "path"_a,
          nb::kw_only(),
          "budget_bytes"_a = uint64_t{32} << 30,
          "daily_write_bytes"_a = 0,
          "read_only"_a = false,
          "storage"_a.none() = nb::none(),
          nb::sig(
              "def __init__(self, path: str | os.PathLike[str], *, budget_bytes: int = "
              "34359738368, "
              "daily_write_bytes: int = 0, read_only: bool = False, storage: Storage | None = None)"
              " -> None"),
          "Opens or creates the directory; storage is for tests.")
      .def(
          "close",
          [](BoundStore& self) {
            const BoundStore last = std::move(self);
            self = {};
            released([&] { const BoundStore gone = last; });
          },
          "Gives up the files; a second call does nothing.")
      .def(
          "add_root",
          [](const BoundStore& self,
             const nb::bytes& id,
             const std::string& fingerprint,
             const std::string& name,
             const std::string& numerics) {
            self.get().add_root({to_digest(id, "id"), fingerprint, name, numerics});
          },
          "id"_a,
          "fingerprint"_a,
          "name"_a,
          "numerics"_a)
      .def("roots", &roots_list, nb::sig("def roots(self) -> list[dict[str, typing.Any]]"))
      .def(
          "records",
          &records_list,
          nb::sig("def records(self) -> list[dict[str, typing.Any]]"),
          "All of them, parents first.")
      .def(
          "contains",
          [](const BoundStore& self, const std::vector<Key>& keys) {
            const std::vector<RecordKey> k = to_keys(keys);
            return released([&] { return self.get().contains(k); });
          },
          "keys"_a)
      .def(
          "read",
          &read,
          "key"_a,
          nb::sig("def read(self, key: tuple[str, bytes]) -> bytes | None"),
          "The payload as it is on the disk, unchecked; None when it is not there.")
      .def(
          "tokens",
          [](const BoundStore& self, const Key& key) {
            const RecordKey k = to_key(key);
            return released([&] { return self.get().tokens(k); });
          },
          "key"_a)
      .def(
          "commit",
          [](const BoundStore& self, const nb::list& records) {
            const std::vector<NewRecord> r = to_records(records);
            std::vector<const char*> names;
            for (const CommitResult c : released([&] { return self.get().commit(r); }))
              names.push_back(result_name(c));
            return names;
          },
          "records"_a,
          nb::sig("def commit(self, records: list[dict[str, typing.Any]]) -> list[str]"),
          "Each record has kind, id, parent, root, pos, tokens and pages (bytes, without "
          "checksums). "
          "Returns committed, failed, refused, no_parent or read_only for each.")
      .def(
          "write_queued",
          &write_queued,
          "records"_a,
          "max_queued_bytes"_a = uint64_t{1} << 30,
          "timeout"_a = 30.0,
          nb::sig(
              "def write_queued(self, records: list[dict[str, typing.Any]], max_queued_bytes: int "
              "= "
              "1073741824, timeout: float = 30.0) -> list[str]"),
          "The same through the thread that writes; \"queue\" for what it did not take.")
      .def(
          "writer_stats", &writer_stats, nb::sig("def writer_stats(self) -> dict[str, typing.Any]"))
      .def(
          "touch",
          [](const BoundStore& self, const std::vector<Key>& keys) {
            self.get().touch(to_keys(keys));
          },
          "keys"_a)
      .def(
          "report_damage",
          [](const BoundStore& self, const Key& key) { self.get().report_damage(to_key(key)); },
          "key"_a)
      .def(
          "remove",
          [](const BoundStore& self, const Key& key) {
            const RecordKey k = to_key(key);
            return released([&] { return self.get().remove(k); });
          },
          "key"_a,
          "Drops a record and what follows it. Returns how many.")
      .def(
          "remove_root",
          [](const BoundStore& self, const nb::bytes& id) {
            const Digest d = to_digest(id, "id");
            return released([&] { return self.get().remove_root(d); });
          },
          "id"_a)
      .def(
          "maintain",
          [](const BoundStore& self) { return released([&] { return self.get().maintain(); }); },
          "One step of eviction and compaction; True when there is more to do.")
      .def(
          "verify",
          &verify,
          "on_progress"_a.none() = nb::none(),
          nb::sig(
              "def verify(self, on_progress: Callable[[int, int], None] | None = None) -> "
              "list[dict[str, typing.Any]]"),
          "Reads and checks everything. Returns the records that are damaged.")
      .def("stats", &stats_dict, nb::sig("def stats(self) -> dict[str, typing.Any]"))
      .def_prop_ro("epoch", [](const BoundStore& self) { return self.get().epoch(); });
}

}  // namespace grebe::bind
