"""Other tools' formats: Hugging Face folders in and out, GGUF files, and lm-evaluation-harness.

architectures        the architectures of Hugging Face that a `ModelConfig` can describe
mapping              how settings and tensors of an architecture correspond to fields and arrays
weights              reads safetensors files
huggingface          a Hugging Face folder as a model of this project
importing            a run directory made of such a folder
stock                which class of Transformers can hold a model
safetensors_writer   writes safetensors files
tokenizer_files      tokenizer.json and tokenizer_config.json
model_card           the README.md of an exported model
gguf_architectures   the architectures of llama.cpp that a `ModelConfig` can describe
gguf_vocabulary      the vocabulary of a GGUF file
gguf_writer          writes GGUF files
export               a run as a folder or a file that other tools read
harness              runs as the model `minigpt` of lm-evaluation-harness
"""
