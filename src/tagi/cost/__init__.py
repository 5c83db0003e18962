"""FLOPs and memory, counted by torch on meta tensors: of any language model, and without its weights."""
