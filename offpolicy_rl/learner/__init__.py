"""The update: state, step, warm start, checkpoint, loop."""
