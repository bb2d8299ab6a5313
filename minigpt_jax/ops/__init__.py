"""Array functions that are independent of any model: attention, embedding, fused loss, key-value cache, matmul."""
