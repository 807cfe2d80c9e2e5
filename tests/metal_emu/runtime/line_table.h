// Source lines of machine addresses, from the DWARF 4 line table of a library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace msl {

class LineTable {
 public:
  /// Reads the ELF file. A file without the table gives no lines.
  explicit LineTable(const std::string& path);

  /// file:line of an address relative to the file's base, or "".
  std::string find(uint64_t address) const;

 private:
  struct Row {
    uint64_t address;
    uint32_t file, line;  // line 0: the end of a sequence
  };
  void read_unit(const uint8_t* p, const uint8_t* end);

  std::vector<std::string> files_;
  std::vector<Row> rows_;
};

}  // namespace msl
