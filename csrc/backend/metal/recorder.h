// Turns ops into a command list: finds the buffer behind every pointer, uploads tables, and puts a
// barrier before each dispatch that touches what an earlier one since the last barrier wrote (or
// writes what one reads). Dispatches without such a conflict run side by side.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "backend/metal/buffers.h"
#include "backend/metal/device.h"
#include "backend/metal/pipelines.h"

namespace grebe::metal {

class Recorder {
 public:
  /// What a dispatch is made of. Bindings are the kernel's buffer indices; 0 is for args().
  class Builder {
   public:
    Builder& constant(uint32_t index, uint32_t value);
    template <class Args>
    Builder& args(const Args& args) {
      static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096);
      return args_bytes(&args, sizeof(Args));
    }
    /// Memory that the kernel reads or writes. A null pointer binds something readable instead
    /// (a kernel must not touch it).
    Builder& read(uint32_t index, const void* data, uint64_t n_bytes);
    Builder& write(uint32_t index, void* data, uint64_t n_bytes);
    Builder& read_write(uint32_t index, void* data, uint64_t n_bytes);
    /// Rows of a weight from the file: never written, so no barrier depends on it.
    Builder& weight(uint32_t index, const void* data);
    /// Values copied to device memory for the time of the step.
    template <class T>
    Builder& table(uint32_t index, std::span<const T> values) {
      static_assert(std::is_trivially_copyable_v<T>);
      return table_bytes(index, values.data(), values.size_bytes());
    }
    /// Memory that the kernel reaches through an address in a table (see Recorder::address).
    Builder& indirect(const void* data, uint64_t n_bytes, bool writes);
    /// The device's address of a table of addresses (uint64 each) of a session's first n history
    /// blocks, for kernels that read rows of them. The table is made once a recording and session:
    /// a million tokens are 2,048 blocks, and every layer reads them. Rows are written before they
    /// are read and never again in a step, so only writes are waited for.
    uint64_t blocks(uint8_t* const* blocks, int64_t n);
    Builder& threadgroup_memory(uint64_t n_bytes);
    /// Counts bytes of weights and rows that this dispatch is bound to read from memory; for
    /// the table in docs/metal.md.
    Builder& reads_bytes(uint64_t n);
    void run(uint64_t groups_x, uint64_t groups_y, uint64_t groups_z, uint32_t threads);

   private:
    friend class Recorder;
    struct Range {
      uintptr_t begin, end;
      bool writes;
    };
    Builder(Recorder& recorder, const char* library, const char* kernel);
    Builder& args_bytes(const void* args, uint64_t n_bytes);
    Builder& table_bytes(uint32_t index, const void* data, uint64_t n_bytes);
    Builder& bind(uint32_t index, const void* data, uint64_t n_bytes, bool writes);

    Recorder& recorder_;
    const char* library_;
    const char* kernel_;
    std::vector<Constant> constants_;
    std::vector<Binding> bindings_;
    std::vector<Range> ranges_;
    Dispatch dispatch_;
    uint64_t reads_ = 0;
    bool reads_blocks_ = false, writes_blocks_ = false;
  };

  Recorder(BufferTable& buffers, PipelineCache& pipelines, bool exact);
  ~Recorder();
  Recorder(const Recorder&) = delete;

  /// f32 arithmetic throughout (kernels="exact"), else half-precision tiles are allowed.
  bool exact() const { return exact_; }

  /// Begins a dispatch of `kernel` in metal/<library>.metal; Builder::run() completes it.
  Builder dispatch(const char* library, const char* kernel) { return {*this, library, kernel}; }
  /// The device's address of host memory from allocate(), for tables of pointers.
  uint64_t address(const void* data) const;
  /// Device memory that lives as long as the recording: intermediate results of one op. Not zeroed.
  void* scratch(uint64_t n_bytes);

  /// What has been recorded; a second call continues after a clear().
  CommandList list(const char* label);
  void clear();
  bool empty() const { return dispatches_.empty(); }
  /// What comes may use the memory of scratch() again: barriers keep it apart from what went.
  void reuse_scratch() { scratch_.rewind(); }
  uint64_t arena_bytes() const { return tables_.n_bytes() + scratch_.n_bytes(); }

  struct Record {  // for tests and the table of the documentation
    const char* kernel;
    uint64_t reads_bytes;
    bool barrier;
  };
  const std::vector<Record>& records() const { return records_; }

 private:
  // Memory handed out front to back, all of it again after rewind(). start_again() also makes one
  // piece of what had to be taken in several; nothing may use the memory then.
  class Arena {
   public:
    void* take(BufferTable& buffers, uint64_t n_bytes);
    void rewind() { i_chunk_ = 0, used_ = 0; }
    void start_again(BufferTable& buffers);
    void free(BufferTable& buffers);
    uint64_t n_bytes() const { return n_bytes_; }

   private:
    static constexpr uint64_t kChunkBytes = uint64_t{1} << 20;
    struct Chunk {
      uint8_t* data;
      uint64_t n_bytes;
    };
    std::vector<Chunk> chunks_;
    size_t i_chunk_ = 0;
    uint64_t used_ = 0, n_bytes_ = 0, next_bytes_ = 0;
  };

  bool conflicts(const Builder::Range& range) const;
  void* nothing();

  BufferTable& buffers_;
  PipelineCache& pipelines_;
  bool exact_;
  std::vector<Dispatch> dispatches_;
  std::vector<Binding> bindings_;
  std::vector<uint8_t> bytes_;
  std::unordered_map<uint32_t, bool> indirect_;  // buffer -> written
  std::vector<IndirectUse> indirect_list_;
  std::vector<Builder::Range> pending_;  // touched since the last barrier
  bool pending_block_writes_ = false;    // what Builder::indirect() announced as written
  struct Blocks {
    int64_t n;
    uint64_t address;
  };
  std::unordered_map<const void*, Blocks> blocks_;  // tables made in this recording
  std::vector<Record> records_;
  Arena tables_, scratch_;
  void* nothing_ = nullptr;
};

}  // namespace grebe::metal
