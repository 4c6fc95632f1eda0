"""The HTTP server: OpenAI's completions over any AsyncBackend. Needs the extra `server`."""
