"""From text to batches: `store` tokenises once, onto disk, in NumPy; `pipeline` draws batches from it with tf.data."""
