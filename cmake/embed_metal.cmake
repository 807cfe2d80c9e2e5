# Writes the kernels' text into a C++ source. Run by metal.cmake at build time:
#   cmake -D METAL_DIR=metal -D OUTPUT=library_source.cpp -P embed_metal.cmake
#
# Each metal/<name>.metal becomes one string: our headers are put in once, where they are first
# included, and #line directives keep the compiler's messages in terms of the original files.
cmake_minimum_required(VERSION 3.18)

# Appends the text of `path` to the variable `flat`; `seen` holds the headers that are in already.
function(flatten path)
  list(APPEND seen "${path}")
  file(RELATIVE_PATH shown "${METAL_DIR}/.." "${path}")
  file(READ "${path}" rest)
  # In the main text of a library this is only a warning.
  string(REPLACE "#pragma once" "" rest "${rest}")
  string(APPEND flat "#line 1 \"${shown}\"\n")
  set(line 1)
  while(rest MATCHES "(^|\n)([ \t]*#[ \t]*include[ \t]+\"([^\"\n]+)\"[^\n]*)")
    set(name "${CMAKE_MATCH_3}")
    set(directive "${CMAKE_MATCH_2}")
    string(FIND "${rest}" "${CMAKE_MATCH_0}" at)
    string(LENGTH "${CMAKE_MATCH_1}" newline)
    math(EXPR at "${at} + ${newline}")
    string(SUBSTRING "${rest}" 0 ${at} before)
    string(LENGTH "${directive}" length)
    math(EXPR at "${at} + ${length}")
    string(SUBSTRING "${rest}" ${at} -1 rest)

    string(APPEND flat "${before}")
    string(REGEX REPLACE "[^\n]" "" newlines "${before}")
    string(LENGTH "${newlines}" n)
    math(EXPR line "${line} + ${n}")
    get_filename_component(folder "${path}" DIRECTORY)
    if(EXISTS "${folder}/${name}")
      get_filename_component(header "${folder}/${name}" ABSOLUTE)
    elseif(EXISTS "${METAL_DIR}/${name}")
      get_filename_component(header "${METAL_DIR}/${name}" ABSOLUTE)
    else()
      message(FATAL_ERROR "${path}:${line}: there is no ${name}")
    endif()
    if(NOT header IN_LIST seen)
      flatten("${header}")
      math(EXPR next "${line} + 1")
      string(APPEND flat "\n#line ${next} \"${shown}\"")
    endif()
  endwhile()
  string(APPEND flat "${rest}")
  set(flat "${flat}" PARENT_SCOPE)
  set(seen "${seen}" PARENT_SCOPE)
endfunction()

get_filename_component(METAL_DIR "${METAL_DIR}" ABSOLUTE)
file(GLOB libraries "${METAL_DIR}/*.metal")
list(SORT libraries)
set(strings "")
set(table "")
foreach(path IN LISTS libraries)
  get_filename_component(name "${path}" NAME_WE)
  set(flat "")
  set(seen "")
  flatten("${path}")
  string(APPEND strings "constexpr char k_${name}[] = R\"metal(${flat})metal\";\n\n")
  string(APPEND table "  if (name == \"${name}\") return k_${name};\n")
endforeach()
set(source
"// Generated from metal/ by cmake/embed_metal.cmake.
#include \"backend/metal/pipelines.h\"

namespace grebe::metal {
namespace {

${strings}}  // namespace

const char* library_source(const std::string& name) {
${table}  return nullptr;
}

}  // namespace grebe::metal
")
file(WRITE "${OUTPUT}" "${source}")
