"""The wire: trajectory.proto, codec, server, client, weights. No JAX but in weights_dir.py."""
