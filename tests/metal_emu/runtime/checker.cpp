#include "checker.h"

#include <algorithm>
#include <cstring>

#include "report.h"

namespace msl {
namespace {

/// Kinds of findings that are reported once a site.
enum Kind : unsigned {
  kThreadgroupEnd,
  kArgumentEnd,
  kUnwrittenThreadgroup,
  kThreadgroupRace,
  kOutOfBounds,
  kReadOnly,
  kProgramScope,
  kUnsetConstant,
  kUnwrittenDevice,
  kDeviceRace,
  kDispatchRace,
};

const char* verb(bool write) { return write ? "write" : "read"; }

}  // namespace

// ---- what a dispatch may access ----

void Checker::begin(Job& job, const msl_run& run, Worker& worker) {
  job_ = &job;
  worker_ = &worker;
  if (run.hazard == 0 || run.hazard != hazard_) {
    first_segment_ = next_segment_;
    segments_.clear();
  }
  hazard_ = run.hazard;
  if (next_segment_ > kIndexMask / 2 && segments_.empty()) {  // start again, with clean cells
    for (auto& [number, p] : pages_) std::fill(p->cells.begin(), p->cells.end(), Cell{});
    first_segment_ = next_segment_ = 1;
  }
  build_intervals(run);
}

void Checker::build_intervals(const msl_run& run) {
  struct Bound {
    uintptr_t begin, end;
    int slot, access;
  };
  std::vector<Bound> bounds;
  for (uint64_t i = 0; i < run.n_binds; ++i) {
    const msl_bind& b = run.binds[i];
    const auto begin = reinterpret_cast<uintptr_t>(b.data);
    int access = b.access;
    // The kernel declares it const: a write could only come from a cast.
    if (access == MSL_WRITABLE) {
      for (unsigned p = 0; p < job_->kernel->n_params; ++p) {
        const msl_param& param = job_->kernel->params[p];
        if (param.kind == kMslBuffer && param.index == b.slot && !param.writable) {
          access = MSL_READ_ONLY;
        }
      }
    }
    bounds.push_back({begin, begin + b.n_bytes, b.slot, access});
  }
  for (uint64_t i = 0; i < run.n_indirect; ++i) {
    const msl_range& r = run.indirect[i];
    const auto begin = reinterpret_cast<uintptr_t>(r.data);
    bounds.push_back({begin, begin + r.n_bytes, -1, r.access});
  }
  std::erase_if(bounds, [](const Bound& b) { return b.begin == b.end; });
  std::sort(bounds.begin(), bounds.end(), [](const Bound& a, const Bound& b) {
    return a.begin < b.begin;
  });
  std::vector<uintptr_t> cuts;
  for (const Bound& b : bounds) cuts.insert(cuts.end(), {b.begin, b.end});
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());

  intervals_.clear();
  std::vector<const Bound*> open;
  size_t next = 0;
  for (size_t c = 0; c + 1 < cuts.size(); ++c) {
    std::erase_if(open, [&](const Bound* b) { return b->end <= cuts[c]; });
    while (next < bounds.size() && bounds[next].begin == cuts[c]) open.push_back(&bounds[next++]);
    if (open.empty()) continue;
    Interval interval{cuts[c], cuts[c + 1], 0, 0, open.back()->slot, false};
    for (const Bound* b : open) {
      interval.reach = std::max(interval.reach, b->end);
      if (b->access == MSL_WRITABLE) interval.write_reach = std::max(interval.write_reach, b->end);
      // Reads of what nobody writes in this dispatch matter to later dispatches only.
      if (b->access == MSL_WRITABLE || (b->access == MSL_READ_ONLY && hazard_ != 0)) {
        interval.shadowed = true;
      }
    }
    intervals_.push_back(interval);
  }
  std::fill(std::begin(last_interval_), std::end(last_interval_), 0);
}

const Checker::Interval* Checker::find(uintptr_t address) {
  if (intervals_.empty()) return nullptr;
  size_t& last = last_interval_[address >> 12 & 63];
  const Interval& guess = intervals_[last];
  if (address >= guess.begin && address < guess.end) return &guess;
  auto after = std::upper_bound(
      intervals_.begin(), intervals_.end(), address, [](uintptr_t a, const Interval& interval) {
        return a < interval.begin;
      });
  if (after == intervals_.begin() || address >= (--after)->end) return nullptr;
  last = static_cast<size_t>(after - intervals_.begin());
  return &*after;
}

void Checker::out_of_bounds(
    Worker& worker, uintptr_t address, size_t n, bool write, const void* site) {
  const Interval* nearest = nullptr;
  uintptr_t distance = ~uintptr_t{0};
  for (const Interval& interval : intervals_) {
    const uintptr_t d = address < interval.begin ? interval.begin - address
                        : address < interval.end ? 0
                                                 : address - interval.end;
    if (d < distance) {
      distance = d;
      nearest = &interval;
    }
  }
  if (first_report(site, kOutOfBounds)) {
    char where[96] = "nothing is bound";
    if (nearest && nearest->slot >= 0) {
      const auto base = reinterpret_cast<uintptr_t>(job_->context.buffers[nearest->slot]);
      snprintf(
          where,
          sizeof where,
          "nearest: buffer %d, at byte %lld",
          nearest->slot,
          static_cast<long long>(address - base));
    } else if (nearest) {
      snprintf(
          where,
          sizeof where,
          "nearest: indirect memory, %llu bytes away",
          static_cast<unsigned long long>(distance));
    }
    report(
        site,
        "out-of-bounds %s of %zu bytes (%s) [kernel %s, thread %u of threadgroup %llu]",
        verb(write),
        n,
        where,
        job_->kernel->name,
        worker.lane->id,
        static_cast<unsigned long long>(worker.threadgroup));
  }
  // A read from a page that is there does no harm, and the run may find more.
  if (write || distance >= kPageBytes || (address >> 12) != ((address - distance) >> 12)) {
    worker.abandon();
  }
}

/// Program-scope data of the library: function constants.
bool Checker::library_access(Worker&, uintptr_t address, bool write, const void* site) {
  const Library& library = *job_->library;
  if (address < library.begin || address >= library.end) return false;
  if (write && first_report(site, kProgramScope)) {
    report(site, "write to program-scope data [kernel %s]", job_->kernel->name);
  }
  for (unsigned i = 0; i < library.abi->n_constants; ++i) {
    const msl_function_constant& constant = library.abi->constants[i];
    if (reinterpret_cast<uintptr_t>(constant.storage) != address) continue;
    if (!constant_is_set(constant.index) && first_report(site, kUnsetConstant)) {
      report(
          site,
          "function constant %u (%s) is used but not set [kernel %s]",
          constant.index,
          constant.name,
          job_->kernel->name);
    }
    break;
  }
  return true;
}

// ---- accesses ----

bool Checker::ordered(const Worker& worker, const ThreadgroupAccess& earlier) {
  if (earlier.epoch < worker.threadgroup_epoch) return true;  // or never, or another threadgroup
  const unsigned self = worker.lane->id;
  if (earlier.spread == kOneLane && earlier.lane == self) return true;
  const unsigned group = self / kSimdWidth;
  return earlier.spread <= kOneSimdGroup && earlier.lane / kSimdWidth == group &&
         earlier.simd_epoch < worker.simd_groups[group].threadgroup_epoch;
}

void Checker::threadgroup_access(
    Worker& worker, uintptr_t address, size_t n, unsigned bits, const void* site) {
  const bool write = bits & kMslWrite, atomic = bits & kMslAtomic;
  const char* kernel = job_->kernel->name;
  const auto begin = static_cast<unsigned>(address - worker.memory_begin());
  const size_t end = begin + n;
  if (end > worker.threadgroup_top) {
    if (first_report(site, kThreadgroupEnd)) {
      report(
          site,
          "%s of %zu bytes past the end of threadgroup memory (byte %u of %u) [kernel %s]",
          verb(write),
          n,
          begin,
          worker.threadgroup_top,
          kernel);
    }
    if (end > kThreadgroupBytes) worker.abandon();
    return;
  }
  for (int i = 0; i < 32; ++i) {
    const auto& argument = worker.arguments[i];
    if (begin >= argument.begin && begin < argument.end && end > argument.end &&
        first_report(site, kArgumentEnd)) {
      report(site, "access crosses the end of threadgroup(%d) [kernel %s]", i, kernel);
    }
  }
  const unsigned self = worker.lane->id;
  const uint32_t epoch = worker.threadgroup_epoch;
  const uint32_t simd_epoch = worker.simd_groups[self / kSimdWidth].threadgroup_epoch;
  const ThreadgroupAccess now{epoch, simd_epoch, static_cast<uint16_t>(self), kOneLane, atomic};
  for (size_t i = begin; i < end; ++i) {
    ThreadgroupCell& cell = threadgroup_[i];
    if (!write && cell.write.epoch < worker.first_epoch &&
        first_report(site, kUnwrittenThreadgroup)) {
      report(site, "read of threadgroup memory never written [kernel %s]", kernel);
    }
    const bool after_write = (atomic && cell.write.atomic) || ordered(worker, cell.write);
    const bool after_read = !write || (atomic && cell.read.atomic) || ordered(worker, cell.read);
    if ((!after_write || !after_read) && first_report(site, kThreadgroupRace)) {
      report(
          site,
          "race on threadgroup memory: %s after an unordered %s by thread %u [kernel %s, thread "
          "%u of threadgroup %llu]",
          verb(write),
          verb(!after_write),
          after_write ? cell.read.lane : cell.write.lane,
          kernel,
          self,
          static_cast<unsigned long long>(worker.threadgroup));
    }
    if (write) {
      cell.write = now;
      if (!atomic) cell.read = {};
      continue;
    }
    // Remember the last reader, and how far the readers since the last barrier are spread.
    ThreadgroupAccess& read = cell.read;
    uint8_t spread = kOneLane;
    if (read.epoch == epoch && (read.lane != self || read.spread != kOneLane)) {
      const bool near = read.lane / kSimdWidth == self / kSimdWidth && read.spread <= kOneSimdGroup;
      if (!near) {
        spread = kOneThreadgroup;
      } else if (read.simd_epoch == simd_epoch) {
        spread = kOneSimdGroup;
      }
    }
    read = now;
    read.spread = spread;
  }
}

Checker::Page& Checker::page(uintptr_t number) {
  Page*& recent = recent_pages_[number % 256];
  if (recent && recent->number == number) return *recent;
  std::unique_ptr<Page>& found = pages_[number];
  if (!found) {
    found = std::make_unique<Page>();
    found->number = number;
    found->cells.resize(kPageBytes >> found->shift);
  }
  recent = found.get();
  return *recent;
}

void Checker::split(Page& page) {
  std::vector<Cell> bytes(kPageBytes);
  for (size_t i = 0; i < kPageBytes; ++i) bytes[i] = page.cells[i >> page.shift];
  page.cells = std::move(bytes);
  page.shift = 0;
}

uint32_t Checker::segment(Worker& worker) {
  Lane& lane = *worker.lane;
  if (lane.segment == 0) {
    lane.segment = next_segment_++;
    const uint32_t simd_epoch = worker.simd_groups[lane.id / kSimdWidth].device_epoch;
    segments_.push_back(
        {job_->number, worker.device_epoch, simd_epoch, lane.id, worker.threadgroup});
  }
  return lane.segment;
}

/// Does what `earlier` stands for happen before the running lane's next step?
bool Checker::ordered(const Worker& worker, uint32_t earlier) const {
  const uint32_t index = earlier & kIndexMask;
  if (index < first_segment_) return true;
  if (earlier & kOtherDispatch) return false;
  const Segment& s = segments_[index - first_segment_];
  const auto spread = static_cast<Spread>(earlier >> kSpreadShift & 3);
  if (s.dispatch != job_->number || s.threadgroup != worker.threadgroup || spread == kAnywhere) {
    return false;
  }
  const unsigned self = worker.lane->id;
  if (spread == kOneLane && s.lane == self) return true;
  if (s.epoch < worker.device_epoch) return true;
  const unsigned group = self / kSimdWidth;
  return spread <= kOneSimdGroup && s.lane / kSimdWidth == group &&
         s.simd_epoch < worker.simd_groups[group].device_epoch;
}

/// Makes the running lane the last reader, and keeps how far the readers are spread.
void Checker::note_read(const Worker& worker, uint32_t& read, uint32_t self) {
  const uint32_t index = read & kIndexMask;
  uint32_t spread = kOneLane, other = 0;
  if (index >= first_segment_ && read != self) {
    const Segment& s = segments_[index - first_segment_];
    const auto before = static_cast<Spread>(read >> kSpreadShift & 3);
    const unsigned lane = worker.lane->id, group = lane / kSimdWidth;
    other = read & kOtherDispatch;
    if (s.dispatch != job_->number) {
      spread = kAnywhere;
      other = kOtherDispatch;
    } else if (s.threadgroup != worker.threadgroup || before == kAnywhere) {
      spread = kAnywhere;
    } else if (s.epoch == worker.device_epoch && (s.lane != lane || before != kOneLane)) {
      const bool near = s.lane / kSimdWidth == group && before <= kOneSimdGroup;
      if (!near) {
        spread = kOneThreadgroup;
      } else if (s.simd_epoch == worker.simd_groups[group].device_epoch) {
        spread = kOneSimdGroup;
      }
    }
  }
  read = self | spread << kSpreadShift | other;
}

void Checker::device_access(
    Worker& worker, uintptr_t address, size_t n, unsigned bits, const void* site) {
  const bool write = bits & kMslWrite, atomic = bits & kMslAtomic;
  const char* kernel = job_->kernel->name;
  const Interval* interval = find(address);
  if (!interval || address + n > interval->reach) {
    if (!library_access(worker, address, write, site)) {
      out_of_bounds(worker, address, n, write, site);
    }
    return;
  }
  if (write && address + n > interval->write_reach && first_report(site, kReadOnly)) {
    if (interval->slot >= 0) {
      report(site, "write to read-only buffer %d [kernel %s]", interval->slot, kernel);
    } else {
      report(site, "write to read-only indirect memory [kernel %s]", kernel);
    }
  }
  if (!interval->shadowed && !write && !any_unwritten_) return;

  const uint32_t self = segment(worker) | (atomic ? kAtomic : 0);
  const uintptr_t end = address + n;
  while (address < end) {
    Page& p = page(address / kPageBytes);
    const uintptr_t page_begin = address & ~(kPageBytes - 1);
    const uintptr_t stop = std::min(end, page_begin + kPageBytes);
    if (p.shift && ((address | stop) & 3)) split(p);
    if (!p.unwritten.empty()) {
      bool unwritten = false;
      for (uintptr_t a = address; a < stop; ++a) {
        unwritten |= p.unwritten[a - page_begin];
        if (write) p.unwritten[a - page_begin] = false;
      }
      if (unwritten && !write && first_report(site, kUnwrittenDevice)) {
        report(
            site,
            "read of device memory never written (buffer %d) [kernel %s]",
            interval->slot,
            kernel);
      }
    }
    const size_t last = (stop - 1 - page_begin) >> p.shift;
    for (size_t i = (address - page_begin) >> p.shift; i <= last; ++i) {
      Cell& cell = p.cells[i];
      const bool after_write = (atomic && (cell.write & kAtomic)) || ordered(worker, cell.write);
      const bool after_read =
          !write || (atomic && (cell.read & kAtomic)) || ordered(worker, cell.read);
      if (!after_write || !after_read) {
        const uint32_t earlier = after_write ? cell.read : cell.write;
        const Segment& s = segments_[(earlier & kIndexMask) - first_segment_];
        const bool other = s.dispatch != job_->number || (earlier & kOtherDispatch);
        if (first_report(site, other ? kDispatchRace : kDeviceRace)) {
          report(
              site,
              "race on device memory: %s after an unordered %s%s (buffer %d) [kernel %s, thread %u "
              "of threadgroup %llu]",
              verb(write),
              verb(!after_write),
              other ? " of another dispatch: a memory barrier is missing" : "",
              interval->slot,
              kernel,
              worker.lane->id,
              static_cast<unsigned long long>(worker.threadgroup));
        }
      }
      if (write) {
        cell.write = self;
        if (!atomic) cell.read = 0;
      } else {
        note_read(worker, cell.read, self);
      }
    }
    address = stop;
  }
}

// ---- memory that the host talks about ----

void Checker::forget(uintptr_t begin, uintptr_t end) {
  mark(begin, end, false);
  for (uintptr_t number = begin / kPageBytes; number * kPageBytes < end; ++number) {
    const auto found = pages_.find(number);
    if (found == pages_.end()) continue;
    Page& p = *found->second;
    const uintptr_t first = number * kPageBytes;
    if (begin <= first && first + kPageBytes <= end) {
      recent_pages_[number % 256] = nullptr;
      pages_.erase(found);
      continue;
    }
    if (p.shift) split(p);
    for (uintptr_t a = std::max(begin, first); a < std::min(end, first + kPageBytes); ++a) {
      p.cells[a - first] = {};
    }
  }
}

void Checker::mark(uintptr_t begin, uintptr_t end, bool unwritten) {
  if (!unwritten && !any_unwritten_) return;
  any_unwritten_ = true;
  for (uintptr_t a = begin; a < end;) {
    const uintptr_t first = a & ~(kPageBytes - 1), stop = std::min(end, first + kPageBytes);
    Page& p = page(a / kPageBytes);
    if (p.unwritten.empty()) p.unwritten.resize(kPageBytes);
    for (; a < stop; ++a) p.unwritten[a - first] = unwritten;
  }
}

}  // namespace msl
