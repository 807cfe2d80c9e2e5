// [DWARF4] section 6.2: a program for a small state machine whose states are the rows of the table.
#include "line_table.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

namespace msl {
namespace {

template <class T>
T take(const uint8_t*& p) {
  T value;
  memcpy(&value, p, sizeof value);
  p += sizeof value;
  return value;
}

uint64_t take_uleb(const uint8_t*& p) {
  uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    const uint8_t byte = *p++;
    value |= uint64_t{byte & 0x7fu} << shift;
    if (!(byte & 0x80)) return value;
  }
}

int64_t take_sleb(const uint8_t*& p) {
  uint64_t value = 0;
  unsigned shift = 0;
  uint8_t byte;
  do {
    byte = *p++;
    value |= uint64_t{byte & 0x7fu} << shift;
    shift += 7;
  } while (byte & 0x80);
  if (shift < 64 && (byte & 0x40)) value |= ~uint64_t{0} << shift;
  return static_cast<int64_t>(value);
}

std::string take_string(const uint8_t*& p) {
  const std::string text(reinterpret_cast<const char*>(p));
  p += text.size() + 1;
  return text;
}

// Standard opcodes.
enum {
  kExtended,
  kCopy,
  kAdvanceAddress,
  kAdvanceLine,
  kSetFile,
  kConstAddAddress = 8,
  kFixedAdvanceAddress = 9,
};
// Extended opcodes.
enum { kEndSequence = 1, kSetAddress = 2 };

}  // namespace

LineTable::LineTable(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < sizeof(Elf64_Ehdr) || memcmp(bytes.data(), ELFMAG, SELFMAG) != 0) return;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
  const char* names = bytes.data() + sections[header->e_shstrndx].sh_offset;
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    if (strcmp(names + sections[i].sh_name, ".debug_line") != 0) continue;
    const auto* p = reinterpret_cast<const uint8_t*>(bytes.data() + sections[i].sh_offset);
    const uint8_t* end = p + sections[i].sh_size;
    while (p + 4 < end) {
      const auto n_bytes = take<uint32_t>(p);
      read_unit(p, p + n_bytes);
      p += n_bytes;
    }
  }
  std::stable_sort(
      rows_.begin(), rows_.end(), [](const Row& a, const Row& b) { return a.address < b.address; });
}

void LineTable::read_unit(const uint8_t* p, const uint8_t* end) {
  const auto version = take<uint16_t>(p);
  if (version < 2 || version > 4) return;
  const auto header_bytes = take<uint32_t>(p);
  const uint8_t* program = p + header_bytes;
  const unsigned min_length = *p++;
  if (version >= 4) ++p;  // operations per instruction: for VLIW
  ++p;                    // default is_stmt
  const auto line_base = take<int8_t>(p);
  const unsigned line_range = *p++;
  const unsigned opcode_base = *p++;
  const uint8_t* operand_counts = p;
  p += opcode_base - 1;
  std::vector<std::string> folders{""};  // number 0 is where the compiler ran
  while (*p) folders.push_back(take_string(p) + "/");
  ++p;
  const auto first_file = static_cast<uint32_t>(files_.size());
  while (*p) {
    const std::string name = take_string(p);
    const uint64_t folder = take_uleb(p);
    files_.push_back(folder < folders.size() && name[0] != '/' ? folders[folder] + name : name);
    for (int i = 0; i < 2; ++i) take_uleb(p);  // time, length
  }

  Row row{0, 1, 1};
  const auto emit = [&](bool at_end) {
    rows_.push_back({row.address, first_file + row.file - 1, at_end ? 0 : row.line});
  };
  for (p = program; p < end;) {
    const unsigned opcode = *p++;
    if (opcode >= opcode_base) {
      const unsigned adjusted = opcode - opcode_base;
      row.address += adjusted / line_range * min_length;
      row.line += static_cast<uint32_t>(line_base + static_cast<int>(adjusted % line_range));
      emit(false);
      continue;
    }
    switch (opcode) {
      case kExtended: {
        const uint64_t n_bytes = take_uleb(p);
        const uint8_t* after = p + n_bytes;
        const unsigned extended = *p++;
        if (extended == kEndSequence) {
          emit(true);
          row = {0, 1, 1};
        } else if (extended == kSetAddress) {
          row.address = take<uint64_t>(p);
        }
        p = after;
        break;
      }
      case kCopy:
        emit(false);
        break;
      case kAdvanceAddress:
        row.address += take_uleb(p) * min_length;
        break;
      case kAdvanceLine:
        row.line += static_cast<uint32_t>(take_sleb(p));
        break;
      case kSetFile:
        row.file = static_cast<uint32_t>(take_uleb(p));
        break;
      case kConstAddAddress:
        row.address += (255 - opcode_base) / line_range * min_length;
        break;
      case kFixedAdvanceAddress:
        row.address += take<uint16_t>(p);
        break;
      default:
        for (unsigned i = 0; i < operand_counts[opcode - 1]; ++i) take_uleb(p);
    }
  }
}

std::string LineTable::find(uint64_t address) const {
  auto after =
      std::upper_bound(rows_.begin(), rows_.end(), address, [](uint64_t a, const Row& row) {
        return a < row.address;
      });
  if (after == rows_.begin()) return "";
  const Row& row = *--after;
  if (row.line == 0 || row.file >= files_.size()) return "";
  return files_[row.file] + ":" + std::to_string(row.line);
}

}  // namespace msl
