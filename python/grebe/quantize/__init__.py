"""From DeepSeek's checkpoint to a GGUF file: ``grebe quantize``.

``checkpoint`` reads safetensors, ``layout`` knows which tensors a model has and what GGUF calls
them, ``recipes`` chooses their types, ``metadata`` and ``gguf_file`` write what comes before the
data, ``convert`` streams the data.
"""
