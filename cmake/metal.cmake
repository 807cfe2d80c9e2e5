# The Metal backend: its C++ everywhere, device.mm where there is Metal, and the kernels as text.
# Kernels are compiled by the driver of the machine that runs them, so nothing here needs Xcode's
# metal tool.

if(APPLE)
  enable_language(OBJCXX)  # CMake wants this outside of functions
endif()

# Adds the backend to `target`.
function(grebe_add_metal target)
  set(source_dir "${PROJECT_SOURCE_DIR}/csrc/backend/metal")
  set(metal_dir "${PROJECT_SOURCE_DIR}/metal")
  file(GLOB sources CONFIGURE_DEPENDS "${source_dir}/*.cpp")
  if(APPLE)
    list(REMOVE_ITEM sources "${source_dir}/device_loader.cpp")
    list(APPEND sources "${source_dir}/device.mm")
    set_source_files_properties("${source_dir}/device.mm" PROPERTIES COMPILE_OPTIONS "-fobjc-arc")
    set_target_properties(${target} PROPERTIES
      OBJCXX_STANDARD 20 OBJCXX_STANDARD_REQUIRED ON OBJCXX_EXTENSIONS OFF)
    # CoreGraphics is what gives command line programs a default device.
    target_link_libraries(${target} PUBLIC
      "-framework Metal" "-framework Foundation" "-framework CoreGraphics")
  else()
    target_link_libraries(${target} PUBLIC ${CMAKE_DL_LIBS})
  endif()

  file(GLOB_RECURSE kernels CONFIGURE_DEPENDS "${metal_dir}/*.metal" "${metal_dir}/*.h")
  set(embedded "${CMAKE_CURRENT_BINARY_DIR}/metal/library_source.cpp")
  set(script "${PROJECT_SOURCE_DIR}/cmake/embed_metal.cmake")
  add_custom_command(
    OUTPUT "${embedded}"
    COMMAND "${CMAKE_COMMAND}" -D "METAL_DIR=${metal_dir}" -D "OUTPUT=${embedded}" -P "${script}"
    DEPENDS ${kernels} "${script}"
    COMMENT "Embedding the Metal kernels"
    VERBATIM)
  target_sources(${target} PRIVATE ${sources} "${embedded}")
  # Argument structs are shared with the kernels.
  target_include_directories(${target} PRIVATE "${metal_dir}")
endfunction()
