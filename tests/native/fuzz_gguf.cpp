// Damages a sound GGUF file in thousands of ways and loads each: the only answers allowed are a
// model or one of our typed errors. Meant to run under AddressSanitizer, UndefinedBehaviorSanitizer
// and LeakSanitizer.
//
//   fuzz_gguf FILE [n_mutations = 20000] [seed = 1]
//
// Three passes: cut at every offset (all of a small file; of a large one the directory and a sample
// of the rest), every byte of the directory set to values that sit on a boundary, then random edits
// of one to eight places.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"
#include "model/config.h"
#include "model/fingerprint.h"
#include "model/weights.h"
#include "text/tokenizer.h"

using namespace grebe;

namespace {

using Bytes = std::vector<uint8_t>;

// Everything that a caller may do with a file: the directory, typed values, the model, the
// tokenizer. Sums over what was handed out, so that every byte that a view covers is really read.
uint64_t use(const std::string& path) {
  const auto file = GgufFile::open(path);
  uint64_t sum = 0;
  for (const GgufKey& key : file->keys()) {
    if (const auto* text = std::get_if<std::string_view>(&key.value)) {
      for (const char c : *text) sum += static_cast<uint8_t>(c);
    } else if (const auto* array = std::get_if<GgufArray>(&key.value)) {
      for (uint64_t i = 0; i < array->data_bytes; ++i) sum += array->data[i];
    }
  }
  for (const GgufTensor& t : file->tensors()) {
    for (uint64_t i = 0; i < t.n_bytes; i += 997) sum += t.data[i];
    if (t.n_bytes) sum += t.data[t.n_bytes - 1];
  }
  // Each part on its own: damage to the tokenizer's keys must not hide what it does to the weights,
  // or the reverse.
  std::exception_ptr refusal;
  const auto attempt = [&](auto&& part) {
    try {
      part();
    } catch (const FormatError&) {
      refusal = std::current_exception();
    } catch (const UnsupportedModel&) {
      refusal = std::current_exception();
    } catch (const InvalidArgument&) {  // a sound tokenizer that lacks the byte we encode
    }
  };
  attempt([&] {
    ModelConfig config = ModelConfig::from_gguf(*file);
    const ModelWeights w = ModelWeights::from_gguf(*file, config);
    sum += w.bytes_per_token + w.layers.size();
    for (const LayerWeights& l : w.layers) {
      for (const Weight* m : {&l.q_a, &l.o_b, &l.gate_exps, &l.up_exps, &l.down_exps}) {
        sum += m->data[m->n_bytes() - 1];
        if (m->scale)
          sum += m->expert_scale(
              m->n_experts - 1)[((m->n_out + 127) / 128) * ((m->n_in + 127) / 128) - 1];
      }
    }
    sum += model_fingerprint(*file, config).size();
  });
  attempt([&] {
    if (!file->find_key("tokenizer.ggml.tokens")) return;  // some test models have none
    const auto tokenizer = Tokenizer::from_gguf(*file);
    sum += tokenizer->encode("a <b> 12\n", true).size() + tokenizer->vocab_size();
  });
  if (refusal) std::rethrow_exception(refusal);
  return sum;
}

class Fuzzer {
 public:
  explicit Fuzzer(const char* source) {
    std::ifstream in(source, std::ios::binary);
    good_.assign(std::istreambuf_iterator<char>(in), {});
    std::string name = (std::filesystem::temp_directory_path() / "grebe-fuzz-XXXXXX").string();
    const int fd = ::mkstemp(name.data());
    if (good_.empty() || fd < 0) {
      std::fprintf(stderr, "cannot read %s or make a temporary file\n", source);
      std::exit(2);
    }
    ::close(fd);
    path_ = name;
    directory_ = directory_bytes(source);
  }
  ~Fuzzer() { ::unlink(path_.c_str()); }

  const Bytes& good() const { return good_; }
  uint64_t directory() const { return directory_; }
  int failures() const { return failures_; }
  const std::map<std::string, uint64_t>& outcomes() const { return outcomes_; }

  /// `what` describes the damage, so that a failure can be repeated.
  void run(const Bytes& bytes, const std::string& what) {
    if (std::FILE* f = std::fopen(path_.c_str(), "wb")) {
      if (!bytes.empty()) std::fwrite(bytes.data(), 1, bytes.size(), f);
      std::fclose(f);
    }
    const auto begin = std::chrono::steady_clock::now();
    try {
      sum_ += use(path_);
      ++outcomes_["loaded"];
    } catch (const FormatError& e) {
      ++outcomes_["FormatError"];
      if (e.path != path_) fail(what, "a FormatError that names another file");
    } catch (const UnsupportedModel&) {
      ++outcomes_["UnsupportedModel"];
    } catch (const IoError&) {
      ++outcomes_["IoError"];
    } catch (const std::exception& e) {
      fail(what, e.what());
    } catch (...) {
      fail(what, "an exception that is no std::exception");
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (seconds.count() > 5) fail(what, "took longer than 5 s");
  }

 private:
  Bytes good_;
  std::string path_;
  uint64_t directory_ = 0;
  uint64_t sum_ = 0;
  int failures_ = 0;
  std::map<std::string, uint64_t> outcomes_;

  // Where the first tensor's bytes begin: what comes before is parsed, what comes after is mostly
  // numbers.
  static uint64_t directory_bytes(const char* source) {
    const auto file = GgufFile::open(source);
    uint64_t first = file->file_bytes();
    for (const GgufTensor& t : file->tensors()) first = std::min(first, t.offset);
    return first;
  }

  void fail(const std::string& what, const char* why) {
    std::printf("FAILED after %s: %s\n", what.c_str(), why);
    ++failures_;
  }
};

void cut_everywhere(Fuzzer& fuzzer) {
  const Bytes& good = fuzzer.good();
  const uint64_t every = fuzzer.directory() <= (1 << 16) ? 1 : fuzzer.directory() >> 16;
  const uint64_t step = std::max<uint64_t>(1, (good.size() - fuzzer.directory()) / 2000);
  for (uint64_t n = 0; n < good.size(); n += n < fuzzer.directory() ? every : step) {
    fuzzer.run(Bytes(good.begin(), good.begin() + n), "cut to " + std::to_string(n) + " bytes");
  }
}

void boundary_bytes(Fuzzer& fuzzer) {
  const uint64_t n = std::min<uint64_t>(fuzzer.directory(), 1 << 15);
  Bytes bytes = fuzzer.good();
  for (uint64_t i = 0; i < n; ++i) {
    for (const uint8_t value : {0x00, 0x7f, 0x80, 0xff}) {
      const uint8_t before = bytes[i];
      bytes[i] = value;
      fuzzer.run(bytes, "byte " + std::to_string(i) + " = " + std::to_string(value));
      bytes[i] = before;
    }
  }
}

void random_edits(Fuzzer& fuzzer, uint64_t n_mutations, uint64_t seed) {
  const uint64_t words[] = {
      0,
      1,
      2,
      0x7fffffff,
      0x80000000,
      0xffffffff,
      uint64_t{1} << 32,
      uint64_t{1} << 62,
      uint64_t{1} << 63,
      ~uint64_t{0},
      ~uint64_t{0} - 31};
  for (uint64_t i = 0; i < n_mutations; ++i) {
    std::mt19937_64 rng(seed + i);  // one seed per mutation: a failure is repeated alone
    Bytes bytes = fuzzer.good();
    const auto at = [&](uint64_t width) {  // nearly always in the directory
      const uint64_t limit = rng() % 16 ? fuzzer.directory() : bytes.size();
      return limit > width ? rng() % (limit - width) : 0;
    };
    for (uint64_t edits = 1 + rng() % 8; edits; --edits) {
      if (bytes.size() < 16) break;
      switch (rng() % 7) {
        case 0:
          bytes[at(1)] ^= static_cast<uint8_t>(1u << rng() % 8);
          break;
        case 1:
          bytes[at(1)] = static_cast<uint8_t>(rng());
          break;
        case 2:
          std::memcpy(&bytes[at(8)], &words[rng() % std::size(words)], 8);
          break;
        case 3:
          std::memcpy(&bytes[at(4)], &words[rng() % std::size(words)], 4);
          break;
        case 4: {  // one part over another: two keys or tensors of one name, strings for numbers
          const uint64_t length = 1 + rng() % 64;
          const uint64_t from = at(length), to = at(length);
          if (std::max(from, to) + length <= bytes.size())
            std::memmove(&bytes[to], &bytes[from], length);
          break;
        }
        case 5: {
          const auto first = bytes.begin() + static_cast<int64_t>(at(16));
          bytes.erase(first, first + static_cast<int64_t>(1 + rng() % 16));
          break;
        }
        default:
          bytes.insert(
              bytes.begin() + static_cast<int64_t>(at(1)),
              1 + rng() % 16,
              static_cast<uint8_t>(rng()));
      }
    }
    fuzzer.run(bytes, "random edits, seed " + std::to_string(seed + i));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: fuzz_gguf FILE [n_mutations] [seed]\n"), 2;
  const uint64_t n_mutations = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 20000;
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  Fuzzer fuzzer(argv[1]);
  try {
    use(argv[1]);
  } catch (const Error& e) {
    return std::fprintf(stderr, "not a file to begin with: %s\n", e.what()), 2;
  }
  cut_everywhere(fuzzer);
  boundary_bytes(fuzzer);
  random_edits(fuzzer, n_mutations, seed);
  for (const auto& [outcome, n] : fuzzer.outcomes())
    std::printf("%-17s %llu\n", outcome.c_str(), static_cast<unsigned long long>(n));
  std::printf("failures          %d\n", fuzzer.failures());
  return fuzzer.failures() ? 1 : 0;
}
