"""The OpenAI chat-completions interface: requests, responses, an HTTP server."""
