#include "backend/metal/pipelines.h"

#include "core/error.h"

namespace grebe::metal {

std::shared_future<uint32_t> PipelineCache::library(const std::string& name) {
  const auto at = libraries_.find(name);
  if (at != libraries_.end()) return at->second;
  const auto compile = [this, name] {
    const char* source = library_source(name);
    if (!source) throw Error("internal error: there is no kernel library '" + name + "'");
    uint32_t id = 0;
    const Status status = device_.new_library(name.c_str(), source, &id);
    if (status.ok()) return id;
    throw BackendError(
        "metal: the kernels of " + name + ".metal do not compile here: " + status.message, name);
  };
  return libraries_.emplace(name, std::async(std::launch::async, compile).share()).first->second;
}

void PipelineCache::compile_ahead(std::span<const char* const> libraries) {
  for (const char* name : libraries) library(name);
}

PipelineCache::Pipeline PipelineCache::pipeline(
    const char* library_name, const char* kernel, std::span<const Constant> constants) {
  key_.assign(library_name).append("/").append(kernel);
  for (const Constant& c : constants) {
    key_.append("/").append(std::to_string(c.index)).append("=").append(std::to_string(c.value));
  }
  const auto at = pipelines_.find(key_);
  if (at != pipelines_.end()) return at->second;
  Pipeline out;
  const Status status = device_.new_pipeline(
      library(library_name).get(),
      kernel,
      constants.data(),
      constants.size(),
      &out.id,
      &out.max_threads);
  if (!status.ok()) {
    throw BackendError("metal: no pipeline for " + key_ + ": " + status.message, kernel);
  }
  return pipelines_.emplace(key_, out).first->second;
}

}  // namespace grebe::metal
