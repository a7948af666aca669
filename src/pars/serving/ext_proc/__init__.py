"""The door for Envoy: an external processor, in its own process, that is asked for each request."""
