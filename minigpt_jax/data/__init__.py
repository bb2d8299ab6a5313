"""From text to batches: `rows` cuts text, `store` tokenises it once onto disk, `pipeline` draws batches by tf.data."""
