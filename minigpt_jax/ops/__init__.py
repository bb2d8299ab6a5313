"""Array functions that know no model: attention, embedding, the fused loss, the key-value cache, matrix products."""
