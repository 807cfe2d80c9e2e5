// The extension module grebe._engine. Private: python/grebe is the interface; its stub is
// python/grebe/_engine.pyi.
#include "bindings.h"

NB_MODULE(_engine, m) {
  m.doc() = "The engine of grebe. Private; use the names of the package grebe.";
  m.attr("version") = GREBE_VERSION;
  grebe::bind::bind_errors(m);
  bind_tokenizer(m);
  bind_sampler(m);
  grebe::bind::bind_inspect(m);
  grebe::bind::bind_model(m);
  grebe::bind::bind_session(m);
  grebe::bind::bind_ops(m);
  grebe::bind::bind_backend_ops(m);
  grebe::bind::bind_bench_ops(m);
}
