// Hashes, files and the storage that fails, for tests. The package's own path does not come through
// here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings.h"
#include "core/blake3.h"
#include "core/cpu_features.h"
#include "core/crc32c.h"
#include "io/faulty_storage.h"
#include "io/storage.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::bytes to_bytes(const void* data, size_t n) {
  return nb::bytes(static_cast<const char*>(data), n);
}

// Updates end at `cuts`, which ascend.
nb::bytes blake3(const Bytes& data, const std::vector<size_t>& cuts) {
  Blake3 hash;
  size_t begin = 0;
  for (size_t cut : cuts) {
    if (cut < begin || cut > data.size()) throw InvalidArgument("cuts must ascend within data");
    hash.update(data.data() + begin, cut - begin);
    begin = cut;
  }
  hash.update(data.data() + begin, data.size() - begin);
  return to_bytes(hash.finish().bytes.data(), 32);
}

uint32_t checksum(const Bytes& data, uint32_t crc, bool portable) {
  return portable ? crc32c_portable(data.data(), data.size(), crc)
                  : crc32c(data.data(), data.size(), crc);
}

// The value of an enumeration of n that `name_of` calls so.
template <class E, class NameOf>
E by_name(const std::string& name, int n, NameOf&& name_of, const char* what) {
  std::string known;
  for (int i = 0; i < n; i++) {
    const E value = static_cast<E>(i);
    if (name == name_of(value)) return value;
    known += std::string(known.empty() ? "" : ", ") + name_of(value);
  }
  throw InvalidArgument(std::string(what) + " is '" + name + "'; it may be " + known);
}

Storage::Mode mode_of(const std::string& name) {
  constexpr const char* kNames[] = {"read", "read_write", "create"};
  return by_name<Storage::Mode>(
      name, 3, [&](Storage::Mode m) { return kNames[static_cast<int>(m)]; }, "mode");
}

Fault::Op op_of(const std::string& name) {
  return by_name<Fault::Op>(name, Fault::kNumOps, fault_op_name, "op");
}

Fault::End end_of(const std::string& name) {
  constexpr const char* kNames[] = {"kill", "power_loss", "power_loss_kill"};
  return by_name<Fault::End>(
      name, 3, [&](Fault::End e) { return kNames[static_cast<int>(e)]; }, "end");
}

void add_fault(
    FaultyStorage& self,
    const std::string& op,
    const std::string& action,
    uint64_t first,
    std::optional<uint64_t> count,
    const std::string& path,
    int errno_value,
    uint64_t n_bytes,
    std::optional<uint64_t> bit,
    double seconds,
    const std::string& end) {
  Fault f;
  f.op = op_of(op);
  f.action = by_name<Fault::Action>(action, Fault::kNumActions, fault_action_name, "action");
  f.first = first;
  f.count = count.value_or(Fault::kForEver);
  f.path = path;
  f.errno_value = errno_value;
  f.bytes = n_bytes;
  f.bit = bit.value_or(Fault::kRandomBit);
  f.seconds = seconds;
  f.end = end_of(end);
  self.add(f);
}

nb::dict counts(const FaultyStorage& self) {
  nb::dict d;
  for (int i = 0; i < Fault::kNumOps; i++) {
    const Fault::Op op = static_cast<Fault::Op>(i);
    d[fault_op_name(op)] = self.count(op);
  }
  return d;
}

nb::list operations(const FaultyStorage& self) {
  nb::list all;
  for (const Operation& o : self.log())
    all.append(
        nb::make_tuple(
            fault_op_name(o.op),
            nb::steal(PyUnicode_DecodeFSDefault(o.path.c_str())),
            o.offset,
            o.bytes,
            nb::str(o.fired.c_str())));
  return all;
}

void bind_file(nb::module_& m) {
  nb::class_<StorageLock>(m, "StorageLock", "Held until it is gone.");
  nb::class_<StorageFile>(m, "StorageFile", "A file of a Storage; closed when it is gone.")
      .def_prop_ro("size", &StorageFile::size)
      .def(
          "read",
          [](const StorageFile& self, uint64_t offset, size_t n) {
            std::vector<uint8_t> data(n);
            {
              const WithoutGil release;
              self.read(offset, data.data(), n);
            }
            return to_bytes(data.data(), n);
          },
          "offset"_a,
          "n"_a)
      .def(
          "write",
          [](StorageFile& self, uint64_t offset, const Bytes& data) {
            const WithoutGil release;
            self.write(offset, data.data(), data.size());
          },
          "offset"_a,
          "data"_a)
      .def("sync", &StorageFile::sync, nb::call_guard<WithoutGil>())
      .def("truncate", &StorageFile::truncate, "size"_a, nb::call_guard<WithoutGil>());
}

// A call with one path and without the GIL.
template <class R>
auto with_path(R (Storage::*call)(const std::string&)) {
  return [call](Storage& self, nb::handle path) -> R {
    const std::string p = to_path(path);
    const WithoutGil release;
    return (self.*call)(p);
  };
}

void bind_storage(nb::module_& m) {
  nb::class_<Storage>(m, "Storage", "Files as a KV cache needs them.")
      .def(
          "open",
          [](Storage& self, nb::handle path, const std::string& mode) {
            const std::string p = to_path(path);
            const Storage::Mode how = mode_of(mode);
            const WithoutGil release;
            return self.open(p, how);
          },
          "path"_a,
          "mode"_a,
          "mode: read, read_write or create.")
      .def("exists", with_path(&Storage::exists), "path"_a)
      .def(
          "list",
          [](Storage& self, nb::handle path) {
            nb::list names;
            for (const std::string& name : self.list(to_path(path)))
              names.append(nb::steal(PyUnicode_DecodeFSDefault(name.c_str())));
            return names;
          },
          "path"_a)
      .def("make_directory", with_path(&Storage::make_directory), "path"_a)
      .def("remove", with_path(&Storage::remove), "path"_a)
      .def("sync_directory", with_path(&Storage::sync_directory), "path"_a)
      .def("try_lock", with_path(&Storage::try_lock), "path"_a)
      .def(
          "rename",
          [](Storage& self, nb::handle from, nb::handle to) {
            const std::string old_name = to_path(from), new_name = to_path(to);
            const WithoutGil release;
            self.rename(old_name, new_name);
          },
          "old"_a,
          "new"_a)
      .def("now", &Storage::now);
  m.def("posix_storage", &posix_storage, "The files of this machine.");
}

void bind_faulty(nb::module_& m) {
  nb::class_<FaultyStorage, Storage>(
      m, "FaultyStorage", "A Storage over another that fails and forgets as it is told.")
      .def(
          nb::new_([](std::shared_ptr<Storage> base, uint64_t seed) {
            return std::make_shared<FaultyStorage>(base ? base : posix_storage(), seed);
          }),
          "base"_a.none() = nb::none(),
          "seed"_a = 0)
      .def(
          "add",
          &add_fault,
          "op"_a,
          "action"_a,
          nb::kw_only(),
          "first"_a = 0,
          "count"_a.none() = 1,
          "path"_a = "",
          "errno"_a = EIO,
          "n_bytes"_a = 0,
          "bit"_a.none() = nb::none(),
          "seconds"_a = 0.0,
          "end"_a = "kill",
          "Plans what the operations first, first + 1, .. that match from now on meet. count None: "
          "all. See csrc/io/fault_plan.h.")
      .def("clear", &FaultyStorage::clear, "Empties the plan.")
      .def("keep_unsynced", &FaultyStorage::keep_unsynced, "To be called before files are opened.")
      .def("power_loss", &FaultyStorage::power_loss, nb::call_guard<WithoutGil>())
      .def_prop_ro("has_power", &FaultyStorage::has_power)
      .def("set_clock_offset", &FaultyStorage::set_clock_offset, "seconds"_a)
      .def_prop_ro(
          "counts", &counts, nb::sig("def counts(self) -> dict[str, int]"), "By operation.")
      .def_prop_ro("n_fired", &FaultyStorage::n_fired, "Entries of the plan met, each time.")
      .def(
          "log",
          &operations,
          nb::sig("def log(self) -> list[tuple[str, str, int, int, str]]"),
          "(operation, path, offset, bytes, actions) of each.");
}

}  // namespace

void bind_storage_ops(nb::module_& m) {
  m.def("blake3", &blake3, "data"_a, "cuts"_a = std::vector<size_t>(), "The hash, 32 bytes.");
  m.def("crc32c", &checksum, "data"_a, "crc"_a = 0, "portable"_a = false, "The checksum.");
  m.def("has_crc32c", &has_crc32c, "Whether the processor has an instruction for it.");
  bind_file(m);
  bind_storage(m);
  bind_faulty(m);
}

}  // namespace grebe::bind
