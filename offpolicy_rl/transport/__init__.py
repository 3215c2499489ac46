"""The wire: trajectory.proto, codec, server, client, weights. No JAX in here."""
