"""From text to batches: `rows` cuts it, `store` tokenises once, onto disk, `pipeline` draws batches with tf.data."""
