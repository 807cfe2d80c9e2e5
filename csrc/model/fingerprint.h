// Which model is this? A name for its weights that cached state can be tied to.
#pragma once

#include <string>

namespace grebe {

class GgufFile;
struct ModelConfig;

/// SHA-256 over the numbers of the config that enter the computation, and of each tensor its name,
/// type, shape and a sample of its bytes: all of a small tensor, three spread pieces of 4 KB of a
/// large one. 64 hex digits.
///
/// A sample, because hashing 87 GB would take longer than a long prompt; a few megabytes read in
/// one burst take a fraction of a second from a cold disk. Requantizing, finetuning or another
/// importance matrix change nearly every block of a tensor and are seen; a file that was edited by
/// hand in a few bytes is not. The order and position of tensors, the model's name and the
/// tokenizer do not count: the same weights in a repacked file are the same model. `config` as
/// ModelWeights::from_gguf left it.
std::string model_fingerprint(const GgufFile& file, const ModelConfig& config);

}  // namespace grebe
